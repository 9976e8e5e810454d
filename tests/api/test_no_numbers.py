"""What is no finite number when it leaves the graph is an error of the engine, never a null."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.engine.runtime.outputs import Alternatives, Outputs
from app.engine.runtime.session import Session
from app.engine.sampling.distributions import NextDistributions
from model.core.bundle import Bundle
from model.core.config import Tail
from model.core.flat_batch import FlatBatch
from model.core.graph import Floats
from tests.api.conftest import Server, serving, settings_for
from tests.api.http.test_errors import error_of

COMPLETIONS = "/v1/completions"
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "score": ("/v1/score", {"input": "a cat"}),
    "texts": ("/v1/score", {"input": ["a cat", "a dog"], "detail": "totals"}),
    "ranks": ("/v1/score", {"input": "a cat", "ranks": True, "top_logprobs": 2}),
    "rescore": ("/v1/rescore", {"utterances": [{"hypotheses": ["a cat", "a dog"]}]}),
    "next": ("/v1/next", {"input": "a"}),
    "candidates": ("/v1/next", {"input": "a", "candidates": [" cat", " dog"]}),
    "greedy": (COMPLETIONS, {"prompt": "a", "temperature": 0}),
    "drawn": (COMPLETIONS, {"prompt": "a", "seed": 1}),
    "edited": (COMPLETIONS, {"prompt": "a", "top_k": 5, "min_p": 0.1, "bad_words": ["a"]}),
    "listed": (COMPLETIONS, {"prompt": "a", "logprobs": 3}),
    "echoed": (COMPLETIONS, {"prompt": "a cat", "max_tokens": 0, "echo": True, "logprobs": 0}),
    "ranked": (COMPLETIONS, {"prompt": "a cat", "max_tokens": 0, "prompt_logprobs": 2}),
    "choices": (COMPLETIONS, {"prompt": "a", "n": 3, "seed": 1}),
}


def spoilt(outputs: Outputs, value: float) -> Outputs:
    """The same with a value in the place of every number, as a bad logit has it."""

    def bad(numbers: Floats) -> Floats:
        return np.full_like(numbers, value)

    listed, following = outputs.alternatives, outputs.next_distributions
    head, clusters = bad(following.head), following.tails
    places = np.array(following.tail_rows, np.int64)
    tails = None if following.tail_logprobs is None else bad(following.tail_logprobs)
    return Outputs(
        bad(outputs.logprobs),
        NextDistributions(head, clusters, places, tails),
        Alternatives(bad(listed.logprobs), listed.ranks, listed.ids, bad(listed.top)),
    )


@pytest.fixture(scope="module")
def tailed(adaptive: Bundle) -> Iterator[Server]:
    """A server of a model with an adaptive softmax."""
    with serving(settings_for(Path(adaptive.folder))) as running:
        yield running


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("kind", ["server", "tailed"])
def test_it_is_an_engine_error(
    kind: str,
    name: str,
    value: float,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server: Server = request.getfixturevalue(kind)
    run = Session.run

    def faulty(self: Session, batch: FlatBatch) -> Outputs:
        return spoilt(run(self, batch), value)

    path, body = BODIES[name]
    before = server.metric("convlm_engine_errors_total")
    with monkeypatch.context() as patches:
        patches.setattr(Session, "run", faulty)
        error = error_of(server.post(path, **body), 500)
    assert error["code"] == "engine_error"
    assert "no finite number" in error["message"]
    assert server.metric("convlm_engine_errors_total") > before
    server.assert_alive()


def test_a_line_says_it_and_the_others_are_answered(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Session.run

    def faulty(self: Session, batch: FlatBatch) -> Outputs:
        outputs = run(self, batch)
        return spoilt(outputs, np.nan) if 5 in batch.tokens else outputs

    with monkeypatch.context() as patches:
        patches.setattr(Session, "run", faulty)
        lines = b'{"input": [7, 7]}\n{"input": [7, 5, 7]}\n{"input": [7, 8]}\n'
        answer = server.client.post("/v1/score/stream", content=lines)
        good, bad, other, summary = map(json.loads, answer.text.splitlines())
        assert "data" in good
        assert "data" in other
        assert bad["error"]["code"] == "engine_error"
        assert (summary["lines"], summary["errors"]) == (3, 1)
    server.assert_alive()


def test_a_stream_says_it_behind_what_it_has_sent(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Session.run
    runs = 0

    def faulty(self: Session, batch: FlatBatch) -> Outputs:
        nonlocal runs
        runs += 1
        outputs = run(self, batch)
        return spoilt(outputs, np.nan) if runs > 3 else outputs

    body = {"prompt": "Once", "max_tokens": 20, "seed": 1, "ignore_eos": True, "stream": True}
    with monkeypatch.context() as patches:
        patches.setattr(Session, "run", faulty)
        *chunks, done = server.post(COMPLETIONS, **body).text.split("\n\n")[:-1]
    assert done == "data: [DONE]"
    error = json.loads(chunks[-1].removeprefix("data: "))["error"]
    assert error["code"] == "engine_error"
    assert "no finite number" in error["message"]
    server.assert_alive()


def test_a_tail_that_is_no_number_is_found() -> None:
    head = np.zeros((3, 4), np.float32)
    tails = np.zeros((2, 4), np.float32)
    clusters = (Tail(3, 5, 1), Tail(5, 7, 1))
    assert not NextDistributions(head, clusters, np.array([0, 2]), tails).invalid
    tails[1, 2:] = np.nan
    assert NextDistributions(head, clusters, np.array([0, 2]), tails).invalid == {2}
    head[1] = -np.inf
    assert NextDistributions(head, clusters, np.array([0, 2]), tails).invalid == {1, 2}
