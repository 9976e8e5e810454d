"""POST /v1/score of token ids: taken as they are, with and without a start symbol."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import app.api.http.stream
from app.api import json_stream
from app.wire.score import ScoreResponse
from tests import texts
from tests.api.conftest import Reference, Server
from tests.api.http.test_errors import error_of

TOLERANCE = 1e-4
ALL_LISTS = {"top_logprobs": 2, "ranks": True, "words": True}


@pytest.mark.parametrize("text", [*texts.ALL, "é", " "])
@pytest.mark.parametrize("add_eos", [False, True])
def test_the_ids_of_a_text_have_its_scores(
    server: Server, reference: Reference, text: str, add_eos: bool
) -> None:
    ids, context = reference.ids(text)[1:], "It was so "
    options = {"add_eos": add_eos, **ALL_LISTS}
    (expected,) = server.ask("/v1/score", input=text, context=context, **options)["data"]
    for given in (context, reference.ids(context)[1:]):
        (found,) = server.ask("/v1/score", input=ids, context=given, **options)["data"]
        assert found == {**expected, "text": text}


def test_lists_of_ids_are_texts(server: Server, reference: Reference) -> None:
    lists = [reference.ids(text)[1:] for text in texts.ALL]
    answer = server.ask("/v1/score", input=lists, detail="totals")
    expected = server.ask("/v1/score", input=list(texts.ALL), detail="totals")
    assert answer == expected
    assert "text" not in answer["data"][0]


def test_without_a_start_symbol_the_first_token_is_given(
    server: Server, reference: Reference
) -> None:
    ids = reference.ids(texts.GETTYSBURG, add_eos=True)
    body: dict[str, Any] = {"input": [ids, ids[1:]], "add_special_tokens": False, **ALL_LISTS}
    answer = server.ask("/v1/score", **body)
    ScoreResponse.model_validate(answer)
    started, bare = answer["data"]
    assert answer["usage"]["prompt_tokens"] == 2 * len(ids) - 1
    for sent, found in ((ids, started), (ids[1:], bare)):
        assert found["token_ids"] == sent
        assert found["text"] == "".join(found["tokens"]) == texts.GETTYSBURG
        assert found["token_count"] == len(sent) - 1
        assert found["eos_scored"] is False
        for name in ("logprobs", "ranks", "top_logprobs"):
            assert found[name][0] is None
            assert len(found[name]) == len(sent)
        expected = reference.scores(sent)
        np.testing.assert_allclose(found["logprobs"][1:], expected, atol=TOLERANCE)
        assert found["logprob_sum"] == pytest.approx(float(expected.sum()), abs=1e-2)
        assert found["perplexity"] == pytest.approx(
            math.exp(-found["logprob_sum"] / (len(sent) - 1))
        )
    # the start symbol is sent and so stands in front of the first word, as white space would
    assert started["words"][0]["surprisal"] is bare["words"][0]["surprisal"] is None
    # what is written as it comes is the same
    assert all(word["surprisal"] is not None for word in bare["words"][1:])


def test_a_context_is_something_in_front(server: Server, reference: Reference) -> None:
    ids = reference.ids(" so", "It was")[1:]
    answer = server.ask("/v1/score", input=" so", context="It was", add_special_tokens=False)
    (found,) = answer["data"]
    expected = reference.scores(ids)[-len(found["token_ids"]) :]
    np.testing.assert_allclose(found["logprobs"], expected, atol=TOLERANCE)


@pytest.mark.parametrize("unscored", [False, True])
def test_an_answer_in_parts_is_the_answer_in_one_piece(
    server: Server, reference: Reference, monkeypatch: pytest.MonkeyPatch, unscored: bool
) -> None:
    body = {
        "input": [reference.ids(text)[1:] for text in texts.ALL],
        "add_special_tokens": not unscored,
        "add_eos": True,
        **ALL_LISTS,
    }
    whole = server.post("/v1/score", **body)
    monkeypatch.setattr(app.api.http.stream, "MAX_BUFFERED_ENTRIES", 10)
    monkeypatch.setattr(json_stream.array_in_slices, "__defaults__", (7,))
    parts = server.post("/v1/score", **body)
    assert "content-length" not in parts.headers
    assert parts.json() == whole.json()


@pytest.mark.parametrize(
    ("input_", "param"), [("a", "input"), ([5], "input"), ([[5, 6], [7]], "input.1")]
)
def test_a_token_with_nothing_in_front_alone_has_no_score(
    server: Server, input_: Any, param: str
) -> None:
    error = error_of(server.post("/v1/score", input=input_, add_special_tokens=False), 400)
    assert error["param"] == param
    assert "start symbol" in error["message"]


def test_bytes_that_are_no_text_are_scored(server: Server, reference: Reference) -> None:
    ids = reference.ids("\u6211")[1:-1]
    (found,) = server.ask("/v1/score", input=ids, words=True)["data"]
    assert found["text"] == "\ufffd"
    assert found["tokens"] == [""] * (len(ids) - 1) + ["\ufffd"]
    assert found["offsets"] == [[0, 1]] * len(ids)
    assert [word["word"] for word in found["words"]] == ["\ufffd"]
    expected = reference.scores([0, *ids])
    np.testing.assert_allclose(found["logprobs"], expected, atol=TOLERANCE)
