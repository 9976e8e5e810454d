"""POST /v1/next: the model's own distribution, and candidates ranked by it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from app.wire.next import NextResponse
from tests import texts
from tests.api.conftest import Reference, Server

TOLERANCE = 1e-4


def test_the_answer_has_the_documented_fields(server: Server) -> None:
    answer = server.ask("/v1/next", input="The capital of")
    assert set(answer) == {"model", "data", "usage", "system_fingerprint"}
    assert answer["model"] == "tiny"
    assert len(answer["data"]) == 10
    for entry in answer["data"]:
        assert set(entry) == {"token", "token_ids", "logprob", "probability"}
        assert len(entry["token_ids"]) == 1
        assert entry["probability"] == pytest.approx(math.exp(entry["logprob"]))
    NextResponse.model_validate(answer)


@pytest.mark.parametrize("text", ["", "A", " ", "Alice was", texts.ODD, texts.ALICE * 12])
def test_the_most_probable_tokens_are_those_of_pytorch(
    server: Server, reference: Reference, text: str
) -> None:
    ids = reference.ids(text)
    row = reference.rows(ids)[-1]
    answer = server.ask("/v1/next", input=text, top_k=400)
    found = answer["data"]
    assert answer["usage"] == {"prompt_tokens": len(ids) - 1, "total_tokens": len(ids) - 1}
    assert sorted(entry["token_ids"][0] for entry in found) == list(range(400))
    values = [entry["logprob"] for entry in found]
    assert values == sorted(values, reverse=True)
    np.testing.assert_allclose(
        values, [row[entry["token_ids"][0]] for entry in found], atol=TOLERANCE
    )
    assert sum(entry["probability"] for entry in found) == pytest.approx(1, abs=1e-4)
    few = server.ask("/v1/next", input=text, top_k=3)["data"]
    assert few == found[:3]


def test_more_tokens_than_there_are_gives_all_of_them(server: Server) -> None:
    assert len(server.ask("/v1/next", input="a", top_k=1000)["data"]) == 400


def test_a_candidate_of_several_tokens_has_the_sum_over_them(
    server: Server, reference: Reference
) -> None:
    text = "Alice was beginning"
    candidates = [" to get very tired", " a", "é", " to get", "\n", " to get very tired"]
    answer = server.ask("/v1/next", input=text, candidates=candidates)
    found = {entry["token"]: entry for entry in answer["data"]}
    assert sorted(entry["token"] for entry in answer["data"]) == sorted(candidates)
    read = 0
    for candidate in candidates:
        own = reference.ids(candidate)[1:]
        read += len(own)
        expected = reference.scores(reference.ids(candidate, text))[-len(own) :].sum()
        assert found[candidate]["token_ids"] == own
        assert found[candidate]["logprob"] == pytest.approx(expected, abs=len(own) * TOLERANCE)
        assert found[candidate]["probability"] == pytest.approx(
            math.exp(found[candidate]["logprob"])
        )
    values = [entry["logprob"] for entry in answer["data"]]
    assert values == sorted(values, reverse=True)
    assert answer["usage"]["prompt_tokens"] == len(reference.ids(text)) - 1 + read


def test_a_candidate_has_the_same_probability_in_any_company(server: Server) -> None:
    text = "It is a truth"
    (alone,) = server.ask("/v1/next", input=text, candidates=[" universally"])["data"]
    crowd = [" universally", *(f" word{n}" for n in range(200))]
    found = server.ask("/v1/next", input=text, candidates=crowd)["data"]
    assert alone in found


def test_a_single_token_candidate_agrees_with_the_distribution(server: Server) -> None:
    listed = server.ask("/v1/next", input="in the ", top_k=400)["data"]
    by_id = {entry["token_ids"][0]: entry["logprob"] for entry in listed}
    for entry in server.ask("/v1/next", input="in the ", candidates=["a", "b", " c"])["data"]:
        if len(entry["token_ids"]) == 1:
            assert entry["logprob"] == pytest.approx(by_id[entry["token_ids"][0]], abs=1e-6)


def test_an_improbable_candidate_has_probability_zero_not_an_error(server: Server) -> None:
    (found,) = server.ask("/v1/next", input="a", candidates=[texts.ALICE * 5])["data"]
    assert found["probability"] == 0
    assert found["logprob"] < -1000


def test_token_ids_are_read_as_the_text_they_are_of(server: Server, reference: Reference) -> None:
    text = "Alice was beginning"
    ids = reference.ids(text)[1:]
    assert server.ask("/v1/next", input=ids)["data"] == server.ask("/v1/next", input=text)["data"]
    assert server.ask("/v1/next", input=[])["data"] == server.ask("/v1/next", input="")["data"]
    cached = server.ask("/v1/next", input=ids * 9, cache=True)["data"]
    assert cached != server.ask("/v1/next", input=ids * 9)["data"]
    candidates = [" to", " a"]
    found = server.ask("/v1/next", input=ids, candidates=candidates)
    assert found["data"] == server.ask("/v1/next", input=text, candidates=candidates)["data"]
    assert found["usage"]["prompt_tokens"] >= len(ids) + 2
    error = server.post("/v1/next", input=[3, 400]).json()["error"]
    assert error["param"] == "input"
    assert "token id 400 at place 1 is not in the vocabulary" in error["message"]


@pytest.mark.parametrize("text", ["", "the Queen and the Queen and the", texts.ALICE * 30])
def test_the_cache_is_that_of_scores(server: Server, text: str) -> None:
    listed = server.ask("/v1/next", input=text, top_k=400, cache=True)["data"]
    assert sum(entry["probability"] for entry in listed) == pytest.approx(1, abs=1e-4)
    plain = server.ask("/v1/next", input=text, top_k=400)["data"]
    assert listed != plain  # the start symbol counts too
    by_id = {entry["token_ids"][0]: entry["logprob"] for entry in listed}
    candidates = ["a", "e", " ", "\n"]
    ranked = server.ask("/v1/next", input=text, candidates=candidates, cache=True)["data"]
    scored = server.ask("/v1/score", input=candidates, context=text, cache=True)["data"]
    assert len(ranked) == len(candidates)
    for entry in ranked:
        (token,) = entry["token_ids"]
        assert entry["logprob"] == pytest.approx(by_id[token], abs=2e-5)
        assert entry["logprob"] in [one["logprob_sum"] for one in scored]
