"""Whatever a client sends, it gets an answer in OpenAI's shape, never a 500."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlparse

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from app.api.http.errors import from_validation
from app.lm.texts import TextReader
from app.wire.completions import CompletionRequest
from app.wire.next import NextRequest
from app.wire.score import ScoreRequest
from model.core.graph import Indices
from model.core.tokenizer import Encoded, Tokenizer
from tests import texts
from tests.api.conftest import Server, crowded

SCORE, NEXT, COMPLETIONS = "/v1/score", "/v1/next", "/v1/completions"
ASKED = (SCORE, NEXT, COMPLETIONS)
PATHS = (SCORE, NEXT, COMPLETIONS)
TEXT_FIELD = {SCORE: "input", NEXT: "input", COMPLETIONS: "prompt"}
HUGE = 10**30
GIANT = int("9" * 4299)
"""The longest number that Python reads: writing one digit more is an error of its own."""


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error of a refusal, its shape checked."""
    assert response.status_code == status, response.text[:500]
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert error["message"]
    assert len(error["message"]) <= 500
    return error


# Values of fields

WRONG: list[tuple[str, str, Any, str]] = [
    # endpoint, field, value, what the error names
    *((SCORE, "input", value, "input") for value in (None, 5, 1.5, True, {}, {"a": 1}, [])),
    (SCORE, "input", [1.5], "input"),
    (SCORE, "input", [1, "a"], "input.1"),
    (SCORE, "input", [True], "input"),
    *((SCORE, "input", [5, value], "input.1") for value in (-1, HUGE, GIANT, 1.5, -1.0, None)),
    (SCORE, "input", [400], "input"),
    (SCORE, "input", [[1], [2, 400]], "input.1"),
    (SCORE, "input", [[1], []], "input.1"),
    (SCORE, "input", [[1], "a"], "input.1"),
    (SCORE, "input", ["a", None], "input.1"),
    (SCORE, "input", [["a"]], "input.0.0"),
    (SCORE, "input", "", "input"),
    (SCORE, "input", [""], "input"),
    (SCORE, "input", ["a", ""], "input.1"),
    *((SCORE, "context", value, "context") for value in (5, {}, [400])),
    *((SCORE, "context", value, "context.0") for value in (["a"], [-1], [[1]])),
    *(
        (SCORE, field, value, field)
        for field in ("add_eos", "add_special_tokens", "ranks", "words")
        for value in (1, "true", [])
    ),
    *((SCORE, "top_logprobs", value, "top_logprobs") for value in (-1, 1.5, "3", True)),
    *((SCORE, "detail", value, "detail") for value in ("all", 5, [])),
    *((SCORE, "model", value, "model") for value in (5, [], {})),
    (SCORE, "nonsense", 1, "nonsense"),
    *((SCORE, field, "a", field) for field in ("queries", "documents", "text_1", "text_2")),
    *((NEXT, "input", value, "input") for value in (None, 5, {}, True)),
    *((NEXT, "input", value, "input.0") for value in (["a"], [-1], [[1]])),
    *((NEXT, "top_k", value, "top_k") for value in (0, -1, 1.5, "5", True)),
    *((NEXT, "candidates", value, "candidates") for value in ("a", 5, {}, [])),
    (NEXT, "candidates", [1], "candidates.0"),
    (NEXT, "candidates", ["a", None], "candidates.1"),
    (NEXT, "candidates", [""], "candidates"),
    (NEXT, "candidates", ["a", ""], "candidates.1"),
    (NEXT, "nonsense", None, "nonsense"),
    *((COMPLETIONS, "prompt", value, "prompt") for value in (5, 1.5, True, {}, [], [[]], [None])),
    *((COMPLETIONS, "prompt", value, "prompt") for value in (["a", 1], [1, "a"], [[1], "a"])),
    *(
        (COMPLETIONS, "prompt", value, "prompt")
        for value in ([True], [[False]], [1.5], [1, 1.5], [[["a"]]])
    ),
    *((COMPLETIONS, "prompt", value, "prompt") for value in ([-1], [400], [HUGE], [GIANT], [[-1]])),
    (COMPLETIONS, "prompt", [[1], [2, 400]], "prompt.1"),
    (COMPLETIONS, "prompt", [[1], [-GIANT]], "prompt.1"),
    *((COMPLETIONS, "max_tokens", v, "max_tokens") for v in (-1, -HUGE, 1.5, "5", True, [])),
    *((COMPLETIONS, "temperature", v, "temperature") for v in (-0.1, 2.1, HUGE, "1", True)),
    *((COMPLETIONS, "temperature", v, "temperature") for v in (float("nan"), float("inf"))),
    *((COMPLETIONS, "top_p", v, "top_p") for v in (0, -1, 1.01, float("nan"), -float("inf"), "1")),
    *((COMPLETIONS, "top_k", v, "top_k") for v in (-2, 1.5, "1", True)),
    *((COMPLETIONS, "n", v, "n") for v in (0, -1, -GIANT, 1.5, "2", True)),
    *((COMPLETIONS, "logprobs", v, "logprobs") for v in (-2, True, 1.5, "5")),
    *((COMPLETIONS, "stop", v, "stop") for v in (5, {}, True)),
    *((COMPLETIONS, "stop", v, "stop.0") for v in ([5], [None], [["a"]])),
    (COMPLETIONS, "stop", ["a", "b" * 1001], "stop.1"),
    *((COMPLETIONS, "seed", v, "seed") for v in (2**63, -(2**63) - 1, GIANT, 1.5, "1", True)),
    *((COMPLETIONS, "echo", v, "echo") for v in (1, "yes", [])),
    *((COMPLETIONS, "stream", v, "stream") for v in (1, "yes", {})),
    *((COMPLETIONS, "stream_options", v, "stream_options") for v in (5, [], {})),
    *((COMPLETIONS, "best_of", v, "best_of") for v in (2, 0, "1", True)),
    *((COMPLETIONS, "suffix", v, "suffix") for v in ("x", 5)),
    *((COMPLETIONS, "logit_bias", v, "logit_bias") for v in (5, [], {"a": 1}, {"1": "b"})),
    *((COMPLETIONS, "logit_bias", v, "logit_bias") for v in ({"1": 101}, {"1": -GIANT})),
    *((COMPLETIONS, "logit_bias", v, "logit_bias") for v in ({"1": float("nan")}, {"1": True})),
    *((COMPLETIONS, "logit_bias", v, "logit_bias") for v in ({"400": 1}, {"-1": 1}, {"01": 1})),
    *((COMPLETIONS, "logit_bias", {"9" * n: 1}, "logit_bias") for n in (18, 19, 5000)),
    *((COMPLETIONS, "presence_penalty", v, "presence_penalty") for v in (2.1, "a", float("nan"))),
    *((COMPLETIONS, "frequency_penalty", v, "frequency_penalty") for v in (-2.1, True)),
    *((COMPLETIONS, "repetition_penalty", v, "repetition_penalty") for v in (0, -1, 2.1, "1")),
    *((COMPLETIONS, "min_p", v, "min_p") for v in (-0.1, 1.1, "0", True)),
    *((COMPLETIONS, "min_tokens", v, "min_tokens") for v in (-1, 2, 0.5, True, GIANT)),
    *((COMPLETIONS, "ignore_eos", v, "ignore_eos") for v in (1, "true")),
    *((COMPLETIONS, "stop_token_ids", v, "stop_token_ids") for v in (5, "a", {}, [400])),
    *(
        (COMPLETIONS, "stop_token_ids", v, "stop_token_ids.0")
        for v in ([-1], ["a"], [True], [HUGE])
    ),
    *((COMPLETIONS, "bad_words", v, "bad_words") for v in (5, "a", {})),
    *((COMPLETIONS, "bad_words", v, "bad_words.0") for v in ([5], [None], [""], [" "])),
    (COMPLETIONS, "bad_words", ["a", "b" * 1001], "bad_words.1"),
    *((path, "timeout_seconds", v, "timeout_seconds") for path in ASKED for v in (0, -1, "5")),
    *((COMPLETIONS, "allowed_token_ids", v, "allowed_token_ids") for v in (5, [], [0], [5, 400])),
    *((COMPLETIONS, "prompt_logprobs", v, "prompt_logprobs") for v in (-2, True, 1.5, "5")),
    *((COMPLETIONS, "logprob_token_ids", v, "logprob_token_ids") for v in (5, [400], "a")),
    *((COMPLETIONS, "return_token_ids", v, "return_token_ids") for v in (1, "yes")),
    *((COMPLETIONS, "add_special_tokens", v, "add_special_tokens") for v in (1, "yes", [])),
    *((COMPLETIONS, "truncate_prompt_tokens", v, "truncate_prompt_tokens") for v in (0, -2, "1")),
    *((COMPLETIONS, "truncation_side", v, "truncation_side") for v in ("middle", 5)),
    *((path, "priority", v, "priority") for path in ASKED for v in (-1, 0.5, "0")),
    *((COMPLETIONS, "user", v, "user") for v in (5, ["a"])),
    *((COMPLETIONS, "model", v, "model") for v in (5, ["tiny"])),
]


def body_with(path: str, field: str, value: Any) -> bytes:
    """A body that is right but for one field. NaN is written as Python writes it."""
    right: dict[str, Any] = {TEXT_FIELD[path]: "a"}
    if path == COMPLETIONS:
        right["max_tokens"] = 1
    return json.dumps({**right, field: value}).encode()


@pytest.mark.parametrize(
    ("path", "field", "value", "param"),
    WRONG,
    ids=[f"{path[4:]}-{field}-{str(value)[:20]}" for path, field, value, _ in WRONG],
)
def test_a_bad_value_is_refused_with_its_fields_name(
    server: Server, path: str, field: str, value: Any, param: str
) -> None:
    error = error_of(server.client.post(path, content=body_with(path, field, value)), 400)
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")


def test_nested_fields_are_named_with_their_path(server: Server) -> None:
    response = server.post(COMPLETIONS, stream=True, stream_options={"include_usage": 5})
    assert error_of(response, 400)["param"] == "stream_options.include_usage"


def test_a_token_id_out_of_range_is_told_the_range(server: Server) -> None:
    error = error_of(server.post(COMPLETIONS, prompt=[400]), 400)
    assert "400" in error["message"]
    assert "0 to 399" in error["message"]


def test_a_value_of_no_allowed_kind_is_told_them_all(server: Server) -> None:
    for body, allowed in (
        ({"input": [1.5]}, "a list of strings, a list of token ids"),
        ({"input": "a", "context": 3}, "a string or a list of token ids"),
    ):
        assert allowed in error_of(server.post(SCORE, **body), 400)["message"]
    wrong = {"utterances": [{"hypotheses": [3]}]}
    assert "a string or an object" in error_of(server.post("/v1/rescore", **wrong), 400)["message"]


def test_null_is_the_default(server: Server) -> None:
    nulls = dict.fromkeys(("context", "add_eos", "top_logprobs", "ranks", "detail", "model"))
    bare = server.ask(SCORE, input="Alice")
    assert server.ask(SCORE, input="Alice", **nulls) == bare
    assert server.ask(NEXT, input="Alice", top_k=None) == server.ask(NEXT, input="Alice")


def test_a_whole_number_may_be_written_with_a_point(server: Server) -> None:
    body = {"prompt": [[5, 6]], "max_tokens": 3, "n": 2, "seed": 7, "logprobs": 2, "top_k": 9}
    body |= {"min_tokens": 1, "best_of": 2, "prompt_logprobs": 1, "truncate_prompt_tokens": 9}
    body |= {"stop_token_ids": [7, 8], "allowed_token_ids": [9, 10], "priority": 0}
    for path, fields in (
        (COMPLETIONS, body),
        (SCORE, {"input": [[5, 6], [7]], "context": [8, 9], "top_logprobs": 2}),
        (SCORE, {"input": [5, 6]}),
        (NEXT, {"input": [5, 6], "top_k": 3}),
        ("/v1/detokenize", {"tokens": [5, 6]}),
    ):
        pointed = {name: with_points(value) for name, value in fields.items()}
        found, expected = server.ask(path, **pointed), server.ask(path, **fields)
        for answer in (found, expected):
            answer.pop("id", None), answer.pop("created", None)
        assert found == expected


def with_points(value: Any) -> Any:
    """The same numbers as 64-bit floats."""
    return [with_points(item) for item in value] if isinstance(value, list) else float(value)


def test_a_packed_body_is_told_that_it_is_not_unpacked(server: Server) -> None:
    packed = gzip.compress(b'{"input": "a"}')
    headers = {"content-encoding": "gzip"}
    for path in (SCORE, "/v1/score/stream"):
        error = error_of(server.client.post(path, content=packed, headers=headers), 400)
        assert error["param"] == "content-encoding"
        assert "gzip is not supported" in error["message"]


def test_a_chat_is_told_what_is_missing(server: Server) -> None:
    chat = [{"role": "user", "content": "Hello"}]
    error = error_of(server.post(COMPLETIONS, messages=chat, max_tokens=1), 400)
    assert error["param"] == "messages"
    server.ask(COMPLETIONS, prompt="a", messages=chat, max_tokens=1)


@pytest.mark.parametrize(("path", "field"), [(SCORE, "input"), (NEXT, "candidates")])
def test_an_empty_list_is_told_in_plain_words(server: Server, path: str, field: str) -> None:
    error = error_of(server.post(path, **{"input": "a", field: []}), 400)
    assert error["message"] == f"{field}: must have at least 1, not 0"


def test_a_missing_text_is_named(server: Server) -> None:
    for path in (SCORE, NEXT):
        assert error_of(server.post(path), 400)["param"] == "input"


def test_a_body_for_pairs_of_texts_is_told_the_difference(server: Server) -> None:
    for body in (
        {"model": "tiny", "text_1": "a", "text_2": ["b", "c"]},
        {"queries": ["a"], "documents": ["b"]},
        {"query": "a", "items": ["b"]},
    ):
        error = error_of(server.post(SCORE, **body), 400)
        assert error["code"] == "unknown_field"
        assert error["param"] in body
        assert "does not compare pairs" in error["message"]
        assert "context" in error["message"]


def test_an_empty_text_is_told_of_add_eos(server: Server) -> None:
    assert "add_eos" in error_of(server.post(SCORE, input=""), 400)["message"]


# Limits: of the small server 8 texts, 1000 tokens, 20,000 bytes

MANY = " ".join(str(n) for n in range(1500))
OVER: list[tuple[str, dict[str, Any], str, str]] = [
    # endpoint, body, what the error names, the limit's name and value
    (SCORE, {"input": ["a"] * 9}, "input", "max_request_texts, 8"),
    (SCORE, {"input": MANY}, "input", "max_request_tokens, 1000"),
    (SCORE, {"input": ["a", MANY]}, "input", "max_request_tokens, 1000"),
    (SCORE, {"input": [MANY[:800]] * 8}, "input", "max_request_tokens, 1000"),
    (SCORE, {"input": [5] * 1001}, "input", "max_request_tokens, 1000"),
    (SCORE, {"input": [[5] * 200] * 6}, "input", "max_request_tokens, 1000"),
    (SCORE, {"input": [[5]] * 9}, "input", "max_request_texts, 8"),
    (SCORE, {"input": "a", "context": [5] * 1001}, "context", "max_request_tokens, 1000"),
    (SCORE, {"input": "a", "context": MANY}, "context", "max_request_tokens, 1000"),
    (SCORE, {"input": "a", "top_logprobs": 6}, "top_logprobs", "max_top_logprobs, 5"),
    (SCORE, {"input": "a", "top_logprobs": HUGE}, "top_logprobs", "max_top_logprobs, 5"),
    (SCORE, {"input": "a", "top_logprobs": GIANT}, "top_logprobs", "max_top_logprobs, 5"),
    (NEXT, {"input": MANY}, "input", "max_request_tokens, 1000"),
    (NEXT, {"input": MANY, "candidates": ["a"]}, "input", "max_request_tokens, 1000"),
    (NEXT, {"input": "a", "candidates": [MANY]}, "candidates", "max_request_tokens, 1000"),
    (NEXT, {"input": "a", "candidates": ["a"] * 9}, "candidates", "max_request_texts, 8"),
    (NEXT, {"input": "a", "top_k": 21}, "top_k", "max_top_k, 20"),
    (NEXT, {"input": "a", "candidates": ["a"], "top_k": 21}, "top_k", "max_top_k, 20"),
    (NEXT, {"input": "a", "top_k": GIANT}, "top_k", "max_top_k, 20"),
    (COMPLETIONS, {"prompt": MANY}, "prompt", "max_request_tokens, 1000"),
    (COMPLETIONS, {"prompt": [5] * 1001}, "prompt", "max_request_tokens, 1000"),
    (COMPLETIONS, {"prompt": [[5] * 200] * 6}, "prompt", "max_request_tokens, 1000"),
    (COMPLETIONS, {"prompt": ["a"] * 9}, "prompt", "max_request_texts, 8"),
    (COMPLETIONS, {"prompt": ["a"] * 3, "n": 3}, "n", "max_request_texts, 8"),
    (COMPLETIONS, {"n": 9}, "n", "max_request_texts, 8"),
    (COMPLETIONS, {"prompt": ["a"] * 100, "n": GIANT}, "n", "max_request_texts, 8"),
    (COMPLETIONS, {"max_tokens": 51}, "max_tokens", "max_completion_tokens, 50"),
    (COMPLETIONS, {"max_tokens": GIANT}, "max_tokens", "max_completion_tokens, 50"),
    (COMPLETIONS, {"logprobs": 6}, "logprobs", "max_top_logprobs, 5"),
    (COMPLETIONS, {"logprobs": GIANT}, "logprobs", "max_top_logprobs, 5"),
    (COMPLETIONS, {"stop": ["a"] * 5}, "stop", "max_stop_strings, 4"),
]


@pytest.mark.parametrize(
    ("path", "body", "param", "limit"),
    OVER,
    ids=[f"{path[4:]}-{param}-{limit[:16]}-{i}" for i, (path, _, param, limit) in enumerate(OVER)],
)
def test_a_size_over_a_limit_is_refused_with_the_limits_name(
    small: Server, path: str, body: dict[str, Any], param: str, limit: str
) -> None:
    error = error_of(small.post(path, **body), 413)
    assert error["code"] == "request_too_large"
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")
    assert limit in error["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (SCORE, {"input": ["a"] * 8, "top_logprobs": 5}),
        (NEXT, {"input": "a", "top_k": 20}),
        (NEXT, {"input": "a", "candidates": ["a"] * 8}),
        (COMPLETIONS, {"prompt": ["a"] * 4, "n": 2, "max_tokens": 50, "logprobs": 5}),
        (COMPLETIONS, {"prompt": [5] * 1000, "stop": ["a"] * 4, "max_tokens": 1}),
    ],
)
def test_a_size_at_the_limit_is_not(small: Server, path: str, body: dict[str, Any]) -> None:
    small.ask(path, **body)


@pytest.mark.parametrize("text", ['[{",', '\\"[,', '\\\\",{', "é]["])
def test_what_stands_in_a_text_is_no_part(server: Server, text: str) -> None:
    long = text * 60_000
    answer = server.ask("/v1/tokenize", prompt=long, add_special_tokens=False)
    assert server.ask("/v1/detokenize", tokens=answer["tokens"])["prompt"] == long


@pytest.mark.parametrize(
    ("utterances", "limit"),
    [
        ([{"hypotheses": ["a"]}] * 9, "max_request_texts, 8: 9"),
        ([{"hypotheses": ["a"] * 5}] * 2, "max_request_hypotheses, 9: 10"),
    ],
)
def test_too_many_utterances_or_hypotheses_are_refused_by_their_number(
    small: Server, utterances: list[dict[str, Any]], limit: str
) -> None:
    error = error_of(small.post("/v1/rescore", utterances=utterances), 413)
    assert error["param"] == "utterances"
    assert limit in error["message"]
    utterances[0] = {"hypotheses": utterances[0]["hypotheses"][1:] or ["a"]}
    assert small.post("/v1/rescore", utterances=utterances[:8]).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (NEXT, {"input": [5] * 5000}),
        ("/v1/detokenize", {"tokens": [5] * 5000}),
        (SCORE, {"input": [5] * 5000, "detail": "totals"}),
        (COMPLETIONS, {"max_tokens": 1, "allowed_token_ids": [5] * 5000}),
        (COMPLETIONS, {"max_tokens": 1, "stop_token_ids": [5] * 5000}),
    ],
)
def test_many_ids_do_not_keep_others_waiting(
    server: Server, path: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read_ids = TextReader.read_ids
    threads: list[str] = []

    def watched(self: TextReader, tokens: list[int], field: str) -> Indices:
        threads.append(threading.current_thread().name)
        return read_ids(self, tokens, field)

    monkeypatch.setattr(TextReader, "read_ids", watched)
    server.ask(path, **body)
    assert threads
    assert "server" not in threads


def test_long_bad_words_do_not_keep_others_waiting(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Tokenizer.encode
    threads: dict[str, str] = {}

    def watched(self: Tokenizer, text: str, limit: int | None = None) -> Encoded:
        threads[text] = threading.current_thread().name
        return encode(self, text, limit)

    monkeypatch.setattr(Tokenizer, "encode", watched)
    words = ["x" * 1000] * 5
    server.ask(COMPLETIONS, prompt="a", max_tokens=1, bad_words=words)
    assert threads[words[0]] != "server"


def test_ten_thousand_texts_are_refused(server: Server) -> None:
    error = error_of(server.post(SCORE, input=["a"] * 10_000), 413)
    assert error["param"] == "input"
    assert "max_request_texts, 1024" in error["message"]
    error = error_of(server.post(COMPLETIONS, prompt=["a"] * 10_000), 413)
    assert error["param"] == "prompt"
    assert "max_request_texts, 1024" in error["message"]


def test_work_beyond_the_queue_is_refused_with_a_time_to_come_again(small: Server) -> None:
    with crowded(small, 7_995, 1000.0):
        for path, body in (
            (SCORE, {"input": texts.ALICE * 2}),
            (NEXT, {"input": texts.ALICE * 2}),
            (COMPLETIONS, {"prompt": texts.ALICE * 2}),
            (COMPLETIONS, {"prompt": texts.ALICE * 2, "stream": True}),
        ):
            response = small.post(path, **body)
            error = error_of(response, 503)
            assert error["code"] == "overloaded"
            assert "max_queue_seconds, 10" in error["message"]
            assert response.headers["retry-after"] == "1"
    small.assert_alive()


def test_a_refusal_before_the_body_comes_is_about_its_length(server: Server) -> None:
    ids = {"input": [5] * 60_000}
    with crowded(server, 8_000, 1000.0):
        assert server.post(SCORE, input="a").headers["retry-after"] == "1"
        assert server.post(SCORE, **ids).headers["retry-after"] == "8"
        assert server.post(COMPLETIONS, prompt=[5] * 60_000).headers["retry-after"] == "1"
    server.assert_alive()


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_what_needs_no_engine_is_answered_however_full_it_is(server: Server, prefix: str) -> None:
    with crowded(server, 10**9, 1.0):
        ids = server.ask(prefix + "/tokenize", prompt="Alice was")["tokens"]
        assert server.ask(prefix + "/detokenize", tokens=ids)["prompt"] == "<s>Alice was"
        assert server.post(SCORE, input="a").status_code == 503
    server.assert_alive()


# Bodies that are no JSON object

NO_BODY: list[tuple[str, bytes, str]] = [
    ("nothing", b"", "body"),
    ("no object", b"[]", "body"),
    ("null", b"null", "body"),
    ("a string", b'"text"', "body"),
    ("a number", b"1", "body"),
    ("malformed", b'{"FIELD": "a"', "body"),
    ("a trailing comma", b'{"FIELD": "a",}', "body"),
    ("two objects", b'{"FIELD": "a"}{}', "body"),
    ("single quotes", b"{'FIELD': 'a'}", "body"),
    ("form fields", b"FIELD=a", "body"),
    ("a byte order mark", b'\xef\xbb\xbf{"FIELD": "a"}', "body"),
    ("UTF-16", '{"FIELD": "a"}'.encode("utf-16"), "body"),
    ("invalid UTF-8", b'{"FIELD": "a\xff\xfe"}', "UTF-8"),
    ("a cut character", b'{"FIELD": "\xe6\x88"}', "UTF-8"),
    ("an overlong character", b'{"FIELD": "\xc0\xaf"}', "UTF-8"),
    ("a raw surrogate", b'{"FIELD": "\xed\xa0\x80"}', "UTF-8"),
    ("a surrogate alone", b'{"FIELD": "\\ud800"}', "surrogate"),
    ("a low surrogate alone", b'{"FIELD": "\\udc00 a"}', "surrogate"),
    ("a surrogate with another letter", b'{"FIELD": "\\ud800\\u0041"}', "surrogate"),
    ("a surrogate in a key", b'{"FIELD": "a", "\\ud800": 1}', "surrogate"),
    ("a raw null byte", b'{"FIELD": "a\x00"}', "body"),
    ("lists 30,000 deep", b'{"FIELD": ' + b"[" * 30_000 + b"]" * 30_000 + b"}", "200 deep"),
    ("objects 15,000 deep", b'{"a":' * 15_000 + b"1" + b"}" * 15_000, "200 deep"),
    ("lists that never end", b"[" * 40_000, "200 deep"),
    ("an unknown field 40,000 deep", b'{"x": ' + b"[" * 40_000, "200 deep"),
    ("a number of 5,000 digits", b'{"FIELD": [' + b"1" * 5000 + b"]}", "body"),
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("raw", "word"), [c[1:] for c in NO_BODY], ids=[c[0] for c in NO_BODY])
def test_a_body_that_is_no_json_object_is_refused(
    server: Server, path: str, raw: bytes, word: str
) -> None:
    content = raw.replace(b"FIELD", TEXT_FIELD[path].encode())
    error = error_of(server.client.post(path, content=content), 400)
    assert error["message"].startswith("body: ")
    assert word in error["message"]


@pytest.mark.parametrize("path", PATHS)
def test_an_id_that_is_no_token_is_named_with_its_place(server: Server, path: str) -> None:
    field = TEXT_FIELD[path]
    error = error_of(server.post(path, **{field: [3, 4, 400, 5, 401]}), 400)
    assert error["param"] == field
    assert error["message"].startswith(f"{field}: token id 400 at place 2 is not in the vocabulary")


@pytest.mark.parametrize("path", PATHS)
def test_any_valid_unicode_is_text(server: Server, path: str) -> None:
    for text in ("a\x00b", "\x01\x7f", "\ufffe\uffff", "\U0010ffff", "\ud83d\ude42", "\u202e"):
        body = json.dumps({TEXT_FIELD[path]: text}).encode()
        assert server.client.post(path, content=body).status_code == 200


def test_nesting_within_the_parsers_limit_is_only_an_unknown_field(server: Server) -> None:
    deep: list[Any] = []
    for _ in range(150):
        deep = [deep]
    server.ask(COMPLETIONS, prompt="a", max_tokens=1, unheard_of=deep)


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "nonsense"])
def test_the_content_type_does_not_matter(server: Server, kind: str) -> None:
    response = server.client.post(SCORE, content=b'{"input": "a"}', headers={"content-type": kind})
    assert response.status_code == 200


# Sizes of bodies


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("extra", [1, 100, 1_000_000])
@pytest.mark.parametrize("announced", [True, False])
def test_too_many_bytes_are_refused(small: Server, path: str, extra: int, announced: bool) -> None:
    limit = small.model.settings.max_request_bytes
    raw = b"{" + b" " * (limit + extra - 1)

    def parts() -> Iterator[bytes]:
        for first in range(0, len(raw), 10_000):
            yield raw[first : first + 10_000]

    response = small.client.post(path, content=raw if announced else parts())
    error = error_of(response, 413)
    assert error["code"] == "request_too_large"
    assert f"body: over the limit max_request_bytes, {limit}" in error["message"]


def test_as_many_bytes_as_the_limit_are_read(small: Server) -> None:
    limit = small.model.settings.max_request_bytes
    raw = b'{"input": "a"}'
    response = small.client.post(SCORE, content=raw + b" " * (limit - len(raw)))
    assert response.status_code == 200


def test_a_client_that_sends_everything_first_still_reads_the_refusal(small: Server) -> None:
    url = urlparse(small.url)
    raw = b"x" * 20_000_000
    with socket.create_connection((url.hostname, url.port), timeout=60) as connection:
        head = f"POST {SCORE} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(raw)}\r\n\r\n"
        connection.sendall(head.encode() + raw)
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_an_endless_body_is_answered_before_its_end(small: Server) -> None:
    url = urlparse(small.url)
    with socket.create_connection((url.hostname, url.port), timeout=60) as connection:
        head = f"POST {SCORE} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode() + b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
        connection.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
    small.assert_alive()


@pytest.mark.parametrize(
    ("model", "raw"),
    [
        (ScoreRequest, b'{"input": [' + b"null," * 50_000 + b"1]}"),
        (ScoreRequest, b'{"input": [1,' + b"null," * 50_000 + b"1]}"),
        (ScoreRequest, b'{"input": "a", "context": [' + b"null," * 50_000 + b"1]}"),
        (ScoreRequest, b'{"input": "a"' + b"".join(b',"%x": 1' % n for n in range(20_000)) + b"}"),
        (NextRequest, b'{"input": "a", "candidates": [' + b"1," * 50_000 + b"1]}"),
        (CompletionRequest, b'{"prompt": [' + b"[null]," * 50_000 + b"[]]}"),
        (CompletionRequest, b'{"stop": [' + b"1," * 50_000 + b"1]}"),
        (
            CompletionRequest,
            b'{"logit_bias": {"0": ""' + b"".join(b',"%x": ""' % n for n in range(20_000)) + b"}}",
        ),
    ],
)
def test_many_mistakes_cost_no_more_than_one(model: type[BaseModel], raw: bytes) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(raw)
    assert caught.value.error_count() == 1
    assert from_validation(caught.value).field


def test_names_and_values_of_any_length_give_short_messages(server: Server) -> None:
    long = "x" * 100_000
    assert len(error_of(server.post(SCORE, input="a", **{long: 1}), 400)["param"]) <= 500
    assert error_of(server.post(SCORE, input="a", model=long), 404)["param"] == "model"
    error_of(server.client.get(f"/v1/models/{long[:5000]}"), 404)
    error_of(server.client.get(f"/{long[:5000]}"), 404)


# Paths and methods


def test_an_unknown_model_is_not_found(server: Server) -> None:
    for response in (
        server.post(SCORE, input="a", model="other"),
        server.post(NEXT, input="a", model=""),
        server.post(COMPLETIONS, model="other"),
        server.client.get("/v1/models/other"),
        server.client.get("/v1/models/%ff%00"),
    ):
        error = error_of(response, 404)
        assert error["code"] == "model_not_found"
        assert error["param"] == "model"
        assert "tiny" in error["message"]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_chat_is_not_found_and_told_what_to_use(server: Server, method: str) -> None:
    error = error_of(server.client.request(method, "/v1/chat/completions"), 404)
    assert "/v1/completions" in error["message"]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/responses", "/", "/v2", "/v1/score/a"])
def test_other_paths_are_not_found(server: Server, path: str) -> None:
    assert error_of(server.client.post(path, content=b"{}"), 404)["code"] == "not_found"


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        *((path, {"POST"}) for path in (*PATHS, "/v1/score/stream", "/v1/rescore", "/tokenize")),
        *(
            (path, {"GET", "HEAD"})
            for path in (
                *("/livez", "/readyz", "/health", "/metrics", "/v1/models", "/v1/models/tiny"),
                *("/v1/tokenizer_info", "/openapi.json", "/docs", "/docs/docs.js"),
            )
        ),
    ],
)
def test_every_path_says_which_methods_it_has(server: Server, path: str, allowed: set[str]) -> None:
    for method in {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"} - allowed:
        response = server.client.request(method, path)
        assert set(response.headers["allow"].split(", ")) == allowed
        if method == "HEAD":
            assert (response.status_code, response.content) == (405, b"")
        else:
            assert error_of(response, 405)["code"] == "method_not_allowed"
    if "HEAD" in allowed:
        whole, head = server.client.get(path), server.client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == whole.headers["content-type"]
        if path != "/metrics":
            assert head.headers["content-length"] == str(len(whole.content))


# Anything at all

LETTERS = st.characters(codec=None, exclude_categories=())  # lone surrogates, too
NUMBERS = st.one_of(
    st.integers(-5, 25),
    st.integers(),
    st.sampled_from([HUGE, -HUGE, GIANT, 2**31, 2**63, 2**64]),
    st.floats(),
    st.sampled_from([5e-324, 1e-310, 1e308, -0.0, 0.5, 1.0, 2.0]),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8), st.text(LETTERS, max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = {
    path: sorted(model.model_fields)
    for path, model in zip(PATHS, (ScoreRequest, NextRequest, CompletionRequest), strict=True)
}


def bodies(path: str) -> st.SearchStrategy[dict[str, Any]]:
    """A right text and random values for some fields, or random values alone."""
    fields = st.sampled_from(FIELDS[path])
    some = st.dictionaries(fields, JSON, max_size=3)
    return st.one_of(
        some,
        st.dictionaries(st.one_of(fields, st.text(max_size=5)), JSON, max_size=4),
        some.map(lambda body: {TEXT_FIELD[path]: "a", **body}),
    )


def post(server: Server, path: str, content: bytes) -> None:
    """Sends anything: a right answer or a refusal in the one shape, and no 5xx."""
    response = server.client.post(path, content=content)
    late = response.status_code == 504 and b"timeout_seconds" in content
    assert late or response.status_code < 500, (content[:2000], response.text[:2000])
    if response.status_code != 200:
        error_of(response, response.status_code)
    elif response.headers["content-type"].startswith("text/event-stream"):
        assert b'"error"' not in response.content
        assert response.content.endswith(b"data: [DONE]\n\n")
    else:
        assert "error" not in response.json()


CHAOS = settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("path", PATHS)
def test_random_values_never_break_the_server(small: Server, path: str) -> None:
    @CHAOS
    @given(bodies(path))
    def attack(body: dict[str, Any]) -> None:
        post(small, path, json.dumps(body).encode())

    attack()
    small.assert_alive()


@pytest.mark.parametrize("path", PATHS)
def test_each_field_survives_random_values(small: Server, path: str) -> None:
    @CHAOS
    @given(st.sampled_from(FIELDS[path]), st.one_of(NUMBERS, JSON))
    def attack(field: str, value: Any) -> None:
        post(small, path, body_with(path, field, value))

    attack()
    small.assert_alive()


@pytest.mark.parametrize("path", PATHS)
def test_random_bytes_never_break_the_server(small: Server, path: str) -> None:
    right = body_with(path, "model", "tiny")

    @CHAOS
    @given(st.integers(0, len(right)), st.integers(0, 8), st.binary(max_size=8))
    def attack(place: int, length: int, noise: bytes) -> None:
        post(small, path, right[:place] + noise + right[place + length :])

    attack()
    small.assert_alive()
