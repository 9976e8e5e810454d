"""The short way of one short text gives what the general way gives; faults get an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.api.endpoints import FAST_PATHS
from app.lm.scoring import SPAN_ROWS
from app.main import create_app
from app.settings import Settings
from model.architecture.gcnn import GCNN
from model.core.config import Block, ModelConfig
from model.core.tokenizer import train_words
from model.export.bundle_writer import export
from tests import texts
from tests.api.conftest import Server, serving, settings_for
from tests.api.http.test_errors import error_of

BODIES: dict[str, dict[str, Any]] = {
    "/v1/score": {"input": "Alice"},
    "/v1/rescore": {"utterances": [{"hypotheses": ["Alice", "Alive"]}]},
    "/v1/next": {"input": "Alice"},
    "/v1/completions": {"prompt": "Alice", "max_tokens": 2},
}


@pytest.mark.parametrize("text", [texts.ALICE, texts.ODD, "x", [5, 6, 7]], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"detail": "totals"},
        {"add_eos": True, "words": True},
        {"context": "It was late.", "ranks": True},
        {"top_logprobs": 2, "ranks": True, "words": True},
        {"add_special_tokens": False, "context": "a"},
    ],
    ids=str,
)
def test_a_text_alone_is_answered_as_it_is_beside_another(
    server: Server, text: str | list[int], options: dict[str, Any]
) -> None:
    alone = server.ask("/v1/score", input=[text], **options)["data"]
    both = server.ask("/v1/score", input=[text, text], **options)["data"]
    assert alone == both[:1]
    assert both[1] == {**both[0], "index": 1}


def test_a_short_text_may_have_more_tokens_than_a_span(server: Server) -> None:
    text = "\U00012000" * 2500  # four tokens a character
    (alone,) = server.ask("/v1/score", input=text, detail="totals")["data"]
    assert alone["token_count"] == 10_000 > SPAN_ROWS
    assert alone == server.ask("/v1/score", input=[text, "a"], detail="totals")["data"][0]


def test_a_text_without_tokens_is_refused(tmp_path: Path) -> None:
    tokenizer = train_words(texts.ALL, 50)
    blocks = (Block(layers=((2, 16),)),)
    config = ModelConfig(vocabulary=tokenizer.size, embedding=8, blocks=blocks)
    export(GCNN(config, tokenizer.start_id).eval(), tokenizer, tmp_path / "words", "words")
    with serving(settings_for(tmp_path / "words")) as running:
        error = error_of(running.post("/v1/score", input=" "), 400)
        assert error == error_of(running.post("/v1/score", input=[" "], context="a"), 400)
        assert "no token to score" in error["message"]
        running.ask("/v1/score", input=" ", add_eos=True)


@pytest.mark.parametrize("path", BODIES)
def test_a_fault_of_ours_is_an_error_in_the_same_shape(
    server: Server, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server.post(path, **BODIES[path]).status_code == 200

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(type(server.app.state.catalog), "loaded", broken)
    error_of(server.post(path, **BODIES[path]), 500)
    monkeypatch.undo()
    server.assert_alive()


def test_these_endpoints_are_documented_and_refuse_other_methods(server: Server) -> None:
    assert set(BODIES) == set(FAST_PATHS)
    paths = create_app(Settings()).openapi()["paths"]
    for path in FAST_PATHS:
        assert set(paths[path]) == {"post"}
        assert error_of(server.client.get(path), 405)["code"] == "method_not_allowed"
