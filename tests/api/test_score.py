"""POST /v1/score: what PyTorch says, counted as documented, however the answer travels."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

import app.api.http.stream
import app.lm.scoring
from app.api import json_stream
from app.wire.score import ScoreResponse
from model.core.tokenizer import Tokenizer
from tests import texts
from tests.api.conftest import Reference, Server

TOLERANCE = 1e-4
BOOK = " ".join(texts.ALL) * 8
PER_TOKEN = {"tokens", "token_ids", "logprobs", "offsets"}
MEASURES = {
    "logprob_sum",
    "token_count",
    "unknown_count",
    "word_count",
    "byte_count",
    "perplexity",
    "word_perplexity",
    "bits_per_byte",
    "fluency",
}


def text_of(tokenizer: Tokenizer, tokens: int) -> str:
    """The beginning of a book, in this many tokens or a little fewer."""
    cuts = tokenizer.encode(BOOK).cuts
    assert len(cuts) >= tokens
    return BOOK[: cuts[tokens - 1]] or BOOK[0]


def without_scores(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer as if asked for totals."""
    data = [{k: v for k, v in text.items() if k not in PER_TOKEN} for text in answer["data"]]
    return {**answer, "data": data}


def test_the_answer_has_the_documented_fields(server: Server) -> None:
    answer = server.ask("/v1/score", input="The cat sat.")
    assert set(answer) == {"object", "model", "data", "totals", "usage", "system_fingerprint"}
    assert answer["object"] == "list"
    assert answer["model"] == "tiny"
    (text,) = answer["data"]
    assert set(text) == {"index", "eos_scored", *PER_TOKEN, *MEASURES}
    assert set(answer["totals"]) == MEASURES
    assert set(answer["usage"]) == {"prompt_tokens", "total_tokens"}
    assert text["index"] == 0
    assert text["eos_scored"] is False
    lengths = {len(text[name]) for name in PER_TOKEN}
    assert lengths == {text["token_count"]}
    ScoreResponse.model_validate(answer)


@pytest.mark.parametrize("tokens", [1, 2, 3, 8, 9, 10, 40, 255, 256, 257, 700, 2000])
def test_logprobs_are_those_of_pytorch(server: Server, reference: Reference, tokens: int) -> None:
    text = text_of(reference.tokenizer, tokens)
    (found,) = server.ask("/v1/score", input=text)["data"]
    ids = reference.ids(text)
    assert found["token_ids"] == ids[1:]
    np.testing.assert_allclose(found["logprobs"], reference.scores(ids), atol=TOLERANCE)


@pytest.mark.parametrize("context", ["Alice", "It was the best of times, ", BOOK[:3000], "\n", "é"])
@pytest.mark.parametrize("add_eos", [False, True])
def test_context_and_end_symbol_condition_as_in_pytorch(
    server: Server, reference: Reference, context: str, add_eos: bool
) -> None:
    text = " was beginning to get very tired"
    answer = server.ask("/v1/score", input=text, context=context, add_eos=add_eos)
    (found,) = answer["data"]
    ids = reference.ids(text, context, add_eos=add_eos)
    count = len(reference.ids(text, add_eos=add_eos)) - 1
    assert found["token_ids"] == ids[-count:]
    expected = reference.scores(ids)[-count:]
    np.testing.assert_allclose(found["logprobs"], expected, atol=TOLERANCE)
    assert answer["usage"]["prompt_tokens"] == len(ids) - 1
    assert found["token_count"] == count
    assert found["byte_count"] == len(text)


@pytest.mark.parametrize("text", [*texts.ALL, " ", "\n", "é", "\u6211", "a\x00b", "</s>", "  x  "])
def test_tokens_join_to_the_text_and_offsets_find_them(server: Server, text: str) -> None:
    (found,) = server.ask("/v1/score", input=text)["data"]
    assert "".join(found["tokens"]) == text
    joined = 0
    for token, (start, end) in zip(found["tokens"], found["offsets"], strict=True):
        joined += len(token)
        assert 0 <= start < end <= len(text)
        # a token that only completes a character, or holds a part of one, touches all of it
        assert text[start:end].endswith(token)
        assert joined in (end, end - 1)
    assert [start for start, _ in found["offsets"]] == sorted(s for s, _ in found["offsets"])


def test_counts_follow_the_documented_rules(server: Server, reference: Reference) -> None:
    text = " naïve café\u2003 two\n\nwords "
    (plain,) = server.ask("/v1/score", input=text)["data"]
    (ended,) = server.ask("/v1/score", input=text, add_eos=True)["data"]
    assert plain["word_count"] == len(re.findall(r"\S+", text)) == 4
    assert plain["byte_count"] == ended["byte_count"] == len(text.encode())
    assert plain["unknown_count"] == 0
    assert plain["token_count"] == len(reference.ids(text)) - 1
    assert ended["token_count"] == plain["token_count"] + 1
    assert ended["word_count"] == plain["word_count"] + 1
    assert ended["eos_scored"] is True
    assert ended["tokens"][-1] == "</s>"
    assert ended["token_ids"][-1] == reference.tokenizer.end_id
    assert ended["offsets"][-1] == [len(text), len(text)]
    assert ended["logprobs"][:-1] == plain["logprobs"]


def test_measures_follow_from_sums_and_counts(server: Server) -> None:
    answer = server.ask("/v1/score", input=list(texts.ALL), add_eos=True)
    for text in answer["data"]:
        total = sum(text["logprobs"])
        assert text["logprob_sum"] == pytest.approx(total, abs=1e-3)
    for measured in [*answer["data"], answer["totals"]]:
        total = measured["logprob_sum"]
        per_token, per_word = total / measured["token_count"], total / measured["word_count"]
        assert measured["perplexity"] == pytest.approx(math.exp(-per_token))
        assert measured["word_perplexity"] == pytest.approx(math.exp(-per_word))
        bits = -total / math.log(2) / measured["byte_count"]
        assert measured["bits_per_byte"] == pytest.approx(bits)
        assert measured["fluency"] == pytest.approx(1 / (1 - per_token))


def test_a_measure_without_a_count_is_null(server: Server) -> None:
    (blank,) = server.ask("/v1/score", input=" \n ")["data"]
    assert blank["word_count"] == 0
    assert blank["word_perplexity"] is None
    assert blank["perplexity"] > 0
    (empty,) = server.ask("/v1/score", input="", add_eos=True)["data"]
    assert empty["byte_count"] == 0
    assert empty["bits_per_byte"] is None
    assert empty["tokens"] == ["</s>"]
    assert empty["offsets"] == [[0, 0]]
    assert empty["token_count"] == empty["word_count"] == 1


def test_texts_are_independent_and_totals_are_over_all(server: Server) -> None:
    several = [*texts.ALL, "a", BOOK[:2000], *(f"text {n}" for n in range(100))]
    answer = server.ask("/v1/score", input=several)
    assert [text["index"] for text in answer["data"]] == list(range(len(several)))
    for index in (0, 3, 4, 5, 57, len(several) - 1):
        (alone,) = server.ask("/v1/score", input=several[index])["data"]
        assert {**alone, "index": index} == answer["data"][index]
    for name in ("token_count", "word_count", "byte_count", "unknown_count"):
        assert answer["totals"][name] == sum(text[name] for text in answer["data"])
    total = sum(text["logprob_sum"] for text in answer["data"])
    assert answer["totals"]["logprob_sum"] == pytest.approx(total)
    assert answer["usage"]["total_tokens"] == answer["totals"]["token_count"]


def test_detail_totals_leaves_the_lists_out_and_changes_nothing_else(server: Server) -> None:
    body = {"input": list(texts.ALL), "add_eos": True, "context": "So "}
    full = server.ask("/v1/score", **body)
    assert server.ask("/v1/score", **body, detail="totals") == without_scores(full)
    with_top = server.ask("/v1/score", **body, detail="totals", top_logprobs=3)
    assert with_top == without_scores(full)


def test_top_logprobs_are_the_most_probable_tokens(server: Server, reference: Reference) -> None:
    text = texts.ALICE[:80]
    (found,) = server.ask("/v1/score", input=text, top_logprobs=5, add_eos=True)["data"]
    (plain,) = server.ask("/v1/score", input=text, add_eos=True)["data"]
    assert found["logprobs"] == plain["logprobs"]
    rows = reference.rows(reference.ids(text))
    assert len(found["top_logprobs"]) == len(rows) == found["token_count"]
    for row, listed in zip(rows, found["top_logprobs"], strict=True):
        assert len(listed) == 5
        values = [entry["logprob"] for entry in listed]
        assert values == sorted(values, reverse=True)
        np.testing.assert_allclose(values, np.sort(row)[::-1][:5], atol=TOLERANCE)
        for entry in listed:
            assert set(entry) == {"token", "token_id", "logprob"}
            assert entry["logprob"] == pytest.approx(row[entry["token_id"]], abs=TOLERANCE)
            special = reference.tokenizer.special_ids
            if entry["token_id"] not in special:
                assert entry["token"] == reference.tokenizer.decode([entry["token_id"]])


@pytest.mark.parametrize("top", [0, 2])
@pytest.mark.parametrize("add_eos", [False, True])
def test_an_answer_in_parts_is_the_answer_in_one_piece(
    server: Server, monkeypatch: pytest.MonkeyPatch, top: int, add_eos: bool
) -> None:
    body = {"input": [BOOK, "short", texts.ODD], "top_logprobs": top, "add_eos": add_eos}
    whole = server.post("/v1/score", **body)
    monkeypatch.setattr(app.api.http.stream, "MAX_BUFFERED_ENTRIES", 10)
    monkeypatch.setattr(json_stream.array_in_slices, "__defaults__", (7,))
    parts = server.post("/v1/score", **body)
    assert "content-length" in whole.headers
    assert "content-length" not in parts.headers
    assert parts.headers["content-type"] == "application/json"
    assert parts.json() == whole.json()


def test_slices_end_where_they_may(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = server.ask("/v1/score", input="four score and seven", add_eos=True)
    for size in range(1, whole["data"][0]["token_count"] + 2):
        monkeypatch.setattr(json_stream.array_in_slices, "__defaults__", (size,))
        assert server.ask("/v1/score", input="four score and seven", add_eos=True) == whole


@pytest.mark.parametrize(("span", "window"), [(1, 4), (5, 5), (64, 1000), (100, 100)])
def test_a_text_in_spans_has_the_same_bits_as_in_one(
    server: Server, monkeypatch: pytest.MonkeyPatch, span: int, window: int
) -> None:
    body = {"input": [BOOK[:1500], texts.ODD], "context": texts.PRIDE, "top_logprobs": 1}
    whole = server.post("/v1/score", **body)
    monkeypatch.setattr(app.lm.scoring, "SPAN_ROWS", span)
    monkeypatch.setattr(app.lm.scoring, "WINDOW_ROWS", window)
    assert server.post("/v1/score", **body).content == whole.content


def test_a_text_of_more_than_one_span_is_that_of_pytorch(
    server: Server, reference: Reference
) -> None:
    text = BOOK * 3
    ids = reference.ids(text)
    assert len(ids) > app.lm.scoring.SPAN_ROWS + 100
    (found,) = server.ask("/v1/score", input=text)["data"]
    np.testing.assert_allclose(found["logprobs"], reference.scores(ids), atol=TOLERANCE)


def test_the_longest_context_is_given_to_many_texts(server: Server, reference: Reference) -> None:
    context = BOOK * 4
    several = [f" text {n}" for n in range(200)]
    answer = server.ask("/v1/score", input=several, context=context)
    ids = reference.ids(several[-1], context)
    count = len(reference.ids(several[-1])) - 1
    expected = reference.scores(ids[-count - 50 :])[-count:]
    np.testing.assert_allclose(answer["data"][-1]["logprobs"], expected, atol=TOLERANCE)
    assert answer["usage"]["prompt_tokens"] == (
        len(reference.ids(context)) - 1 + answer["totals"]["token_count"]
    )


def test_the_same_request_has_the_same_answer(server: Server) -> None:
    first = server.post("/v1/score", input=BOOK[:3000], model="tiny")
    assert server.post("/v1/score", input=BOOK[:3000]).content == first.content


def test_a_repeated_key_counts_once_and_the_last_wins(server: Server) -> None:
    response = server.client.post("/v1/score", content=b'{"input":"first","input":"last"}')
    assert "".join(response.json()["data"][0]["tokens"]) == "last"
