"""POST /v1/rescore: n-best lists ranked as documented, and cheaper than texts apart."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import app.api.http.stream
from app.api import json_stream
from app.wire.rescore import RescoreRequest, RescoreResponse
from tests import texts
from tests.api.conftest import Server, crowded
from tests.api.http.test_errors import JSON, error_of, post
from tests.api.test_score import MEASURES

RESCORE = "/v1/rescore"
SPOKEN = [
    "I scream for ice cream",
    "ice cream for I scream",
    "I scream four ice cream",
    "eye scream for ice cream today",
]


def hypotheses(words: list[str], count: int) -> list[str]:
    """Texts whose first half is alike and whose second differs from the first token on."""
    half = len(words) // 2
    return [" ".join([*words[:half], f"({n})", *words[half + 1 :]]) for n in range(count)]


def test_the_answer_has_the_documented_fields(server: Server) -> None:
    answer = server.ask(RESCORE, utterances=[{"hypotheses": SPOKEN}])
    assert set(answer) == {"object", "model", "data", "usage", "system_fingerprint"}
    (utterance,) = answer["data"]
    assert set(utterance) == {"index", "hypotheses"}
    for found in utterance["hypotheses"]:
        assert set(found) == {"index", "score", "prior", "eos_scored", *MEASURES}
        assert found["prior"] is None
        assert found["score"] == found["logprob_sum"]
    RescoreResponse.model_validate(answer)


@pytest.mark.parametrize("add_eos", [False, True])
@pytest.mark.parametrize(("weight", "length_weight"), [(1, 0), (0.7, -1.5), (0, 1), (-2, 0.25)])
def test_scores_follow_the_formula_and_measures_are_those_of_score(
    server: Server, weight: float, length_weight: float, add_eos: bool
) -> None:
    contexts = ["", "What did he say? ", [5, 6, 7]]
    answer = server.ask(
        RESCORE,
        utterances=[
            {
                "context": context,
                "hypotheses": [{"text": t, "prior": -1.5 * n} for n, t in enumerate(SPOKEN)],
            }
            for context in contexts
        ],
        weight=weight,
        length_weight=length_weight,
        add_eos=add_eos,
    )
    assert [utterance["index"] for utterance in answer["data"]] == [0, 1, 2]
    read = 0
    for context, utterance in zip(contexts, answer["data"], strict=True):
        scored = server.ask(
            "/v1/score", input=SPOKEN, context=context, add_eos=add_eos, detail="totals"
        )
        read += scored["usage"]["prompt_tokens"]
        found = utterance["hypotheses"]
        assert sorted(one["index"] for one in found) == [0, 1, 2, 3]
        for one in found:
            place = one["index"]
            assert {**scored["data"][place], **one} == one
            assert one["prior"] == -1.5 * place
            expected = (
                one["prior"] + weight * one["logprob_sum"] + length_weight * one["word_count"]
            )
            assert one["score"] == pytest.approx(expected, rel=1e-12)
        values = [one["score"] for one in found]
        assert values == sorted(values, reverse=True)
    assert answer["usage"]["prompt_tokens"] == read


def test_of_equal_scores_the_first_stays_first(server: Server) -> None:
    same = [{"hypotheses": ["the same", "the same", "the same"]}]
    (utterance,) = server.ask(RESCORE, utterances=same)["data"]
    assert [one["index"] for one in utterance["hypotheses"]] == [0, 1, 2]
    other = [{"hypotheses": [{"text": "a", "prior": 1}, {"text": "b c", "prior": 1}]}]
    (utterance,) = server.ask(RESCORE, utterances=other, weight=0)["data"]
    assert [one["index"] for one in utterance["hypotheses"]] == [0, 1]


def test_tokens_are_listed_when_asked_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {
        "utterances": [{"context": "So ", "hypotheses": SPOKEN}, {"hypotheses": list(texts.ALL)}],
        "add_eos": True,
        "detail": "tokens",
    }
    whole = server.post(RESCORE, **body)
    answer = whole.json()
    RescoreResponse.model_validate(answer)
    for utterance, context, sent in zip(
        answer["data"], ("So ", ""), (SPOKEN, list(texts.ALL)), strict=True
    ):
        scored = server.ask("/v1/score", input=sent, context=context, add_eos=True)["data"]
        for one in utterance["hypotheses"]:
            expected = scored[one["index"]]
            for name in ("tokens", "token_ids", "offsets", "logprobs"):
                assert one[name] == expected[name]
    monkeypatch.setattr(app.api.http.stream, "MAX_BUFFERED_ENTRIES", 10)
    monkeypatch.setattr(json_stream.array_in_slices, "__defaults__", (7,))
    parts = server.post(RESCORE, **body)
    assert "content-length" not in parts.headers
    assert parts.json() == answer


def test_fluency_is_that_of_ge(server: Server) -> None:
    (utterance,) = server.ask(RESCORE, utterances=[{"hypotheses": SPOKEN}], add_eos=True)["data"]
    for one in utterance["hypotheses"]:
        entropy = -one["logprob_sum"] / one["token_count"]
        assert one["fluency"] == pytest.approx(1 / (1 + entropy))
        assert 0 < one["fluency"] < 1


def test_a_shared_beginning_is_computed_once(server: Server) -> None:
    rows = 'convlm_rows_total{kind="score"}'
    lists = [hypotheses(text.split()[:60], 50) for text in (texts.ALICE, texts.PRIDE)]
    apart = 0
    expected: list[list[float]] = []
    for several in lists:
        expected.append([])
        for text in several:
            before = server.metric(rows)
            (scored,) = server.ask("/v1/score", input=text, detail="totals")["data"]
            apart += server.metric(rows) - before
            expected[-1].append(scored["logprob_sum"])
    before = server.metric(rows)
    answer = server.ask(RESCORE, utterances=[{"hypotheses": several} for several in lists])
    assert server.metric(rows) - before < 0.6 * apart
    for utterance, sums in zip(answer["data"], expected, strict=True):
        assert [sums[one["index"]] for one in utterance["hypotheses"]] == [
            one["logprob_sum"] for one in utterance["hypotheses"]
        ]


LONG = " ".join(str(n) for n in range(1500))


@pytest.mark.parametrize(
    ("body", "param", "status"),
    [
        ({}, "utterances", 400),
        ({"utterances": []}, "utterances", 400),
        ({"utterances": ["a"]}, "utterances.0", 400),
        ({"utterances": [{}]}, "utterances.0.hypotheses", 400),
        ({"utterances": [{"hypotheses": "a"}]}, "utterances.0.hypotheses", 400),
        ({"utterances": [{"hypotheses": []}]}, "utterances.0.hypotheses", 400),
        ({"utterances": [{"hypotheses": ["a", 5]}]}, "utterances.0.hypotheses.1", 400),
        ({"utterances": [{"hypotheses": ["a"]}, {"hypotheses": ["a", ""]}]},
         "utterances.1.hypotheses.1", 400),
        ({"utterances": [{"hypotheses": [{"text": "a", "prior": "5"}]}]},
         "utterances.0.hypotheses.0.prior", 400),
        ({"utterances": [{"hypotheses": [{"text": "a", "score": 5}]}]},
         "utterances.0.hypotheses.0.score", 400),
        ({"utterances": [{"hypotheses": ["a", {"text": "b", "prior": 1}]}]}, "utterances.0", 400),
        ({"utterances": [{"hypotheses": ["a"], "context": [400]}]}, "utterances.0.context", 400),
        ({"utterances": [{"hypotheses": ["a"]}], "weight": 1e7}, "weight", 400),
        ({"utterances": [{"hypotheses": ["a"]}], "length_weight": "1"}, "length_weight", 400),
        ({"utterances": [{"hypotheses": ["a"]}], "detail": "words"}, "detail", 400),
        ({"utterances": [{"hypotheses": ["a"]}], "model": "other"}, "model", 404),
        ({"utterances": [{"hypotheses": ["a"] * 5}] * 2}, "utterances", 413),
        ({"utterances": [{"hypotheses": ["a"]}] * 9}, "utterances", 413),
        ({"utterances": [{"hypotheses": ["a", LONG]}]}, "utterances.0.hypotheses", 413),
        ({"utterances": [{"hypotheses": ["a"], "context": LONG}]}, "utterances.0.context", 413),
        ({"utterances": [{"hypotheses": ["a"], "context": LONG[:900]}] * 4},
         "utterances.1.context", 413),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_with_its_fields_name(
    small: Server, body: dict[str, Any], param: str, status: int
) -> None:
    error = error_of(small.post(RESCORE, **body), status)
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")


def test_work_beyond_the_queue_is_refused(small: Server) -> None:
    with crowded(small, 7_950, 1000.0):
        response = small.post(RESCORE, utterances=[{"hypotheses": [texts.ALICE, texts.PRIDE]}])
        assert error_of(response, 503)["code"] == "overloaded"
    small.assert_alive()


def test_random_values_never_break_the_server(small: Server) -> None:
    fields = st.sampled_from([*RescoreRequest.model_fields, "hypotheses", "context", "prior"])
    hypothesis = st.one_of(st.just("a"), st.dictionaries(st.sampled_from(["text", "prior"]), JSON))
    utterance = st.fixed_dictionaries(
        {"hypotheses": st.lists(st.one_of(hypothesis, JSON), max_size=3)},
        optional={"context": JSON},
    )
    utterances = st.lists(st.one_of(utterance, JSON), max_size=3)

    @settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(utterances, st.dictionaries(fields, JSON, max_size=2))
    def attack(several: list[Any], rest: dict[str, Any]) -> None:
        post(small, RESCORE, json.dumps({"utterances": several, **rest}).encode())

    attack()
    small.assert_alive()
