"""What /openapi.json says of responses is true of real ones, and of requests with null."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest

from app.errors import OverloadError
from app.main import create_app
from app.settings import Settings
from tests import texts
from tests.api.conftest import Server, failing, serving, settings_for

IDS = [5, 6, 7]
LISTS = {"words": True, "ranks": True, "top_logprobs": 3}
NBEST = [{"text": "Alice", "prior": -3.5}, {"text": "Alive", "prior": -4}]
ECHO = {"prompt": "Alice was", "max_tokens": 3, "echo": True}
STREAM = {**ECHO, "stream": True}
COUNTED = {"include_usage": True, "continuous_usage_stats": True}

ANSWERS: dict[str, list[Any]] = {
    "POST /v1/score": [
        {"input": "Alice"},
        {"input": IDS, **LISTS},
        {"input": [IDS, [8]], "detail": "totals"},
        {"input": [texts.ALICE, "", "é"], "context": "Once", "add_eos": True, **LISTS},
        {"input": "a b", "add_special_tokens": False, **LISTS},
        {"input": " ", "words": True},
        {"input": texts.ALICE, "cache": True},
        {"input": "a" * 60_000, **LISTS},  # written in parts
    ],
    "POST /v1/score/stream": [
        [
            {"input": "Alice", "custom_id": "a"},
            {"custom_id": "b", "body": {"input": IDS, **LISTS}},
            {"input": 5},
            {"input": ["a"] * 2000},
        ],
        [],
    ],
    "POST /v1/rescore": [
        {"utterances": [{"hypotheses": NBEST, "context": "Once"}, {"hypotheses": ["a"]}]},
        {"utterances": [{"hypotheses": NBEST}], "detail": "tokens", "add_eos": True},
    ],
    "POST /v1/next": [
        {"input": "Alice", "top_k": 3},
        {"input": IDS, "candidates": [" was", " is"]},
    ],
    "POST /v1/completions": [
        {"max_tokens": 2},
        {"prompt": ["Alice", "Once"], "n": 2, "max_tokens": 2, "stop": [" ", "e"]},
        {**ECHO, "logprobs": 2, "prompt_logprobs": 1, "return_token_ids": True},
        {**ECHO, "logprobs": 0, "max_tokens": 0, "return_tokens_as_token_ids": True},
        {"prompt": IDS, "max_tokens": 3, "prompt_logprobs": 0},
        STREAM,
        {**STREAM, "logprobs": 2, "return_token_ids": True, "n": 2, "stream_options": COUNTED},
        {**STREAM, "stop_token_ids": list(range(2, 300)), "include_stop_str_in_output": True},
    ],
    **{
        f"POST {prefix}/tokenize": [
            {"prompt": "Alice"},
            {
                "prompt": "naïve",
                "return_token_strs": True,
                "return_token_bytes": True,
                "return_offsets": True,
            },
        ]
        for prefix in ("", "/v1")
    },
    **{f"POST {prefix}/detokenize": [{"tokens": [0, 5, 6]}] for prefix in ("", "/v1")},
    **{f"GET {prefix}/tokenizer_info": [None] for prefix in ("", "/v1")},
    "GET /v1/models": [None],
    "GET /v1/models/{name}": [{"name": "tiny"}],
    **{f"GET {path}": [None] for path in ("/livez", "/readyz", "/health", "/ping", "/version")},
    "POST /ping": [None],
    "GET /metrics": [None],
}
"""Bodies, or parameters of the path, for each endpoint: every optional form of its answer."""

REFUSED: list[tuple[str, Any, int]] = [
    ("POST /v1/score", {"input": 5}, 400),
    ("POST /v1/score", {"input": "a", "model": "x"}, 404),
    ("POST /v1/score", {"input": ["a"] * 2000}, 413),
    ("POST /v1/score/stream?order=no", [], 400),
    ("POST /v1/rescore", {"utterances": [{"hypotheses": [5]}]}, 400),
    ("POST /v1/rescore", {"utterances": [{"hypotheses": ["a"]}], "model": "x"}, 404),
    ("POST /v1/rescore", {"utterances": [{"hypotheses": ["a"]}] * 1025}, 413),
    ("POST /v1/next", {"input": 5}, 400),
    ("POST /v1/next", {"input": "a", "model": "x"}, 404),
    ("POST /v1/next", {"input": "a", "top_k": 5000}, 413),
    ("POST /v1/completions", {"max_tokens": -1}, 400),
    ("POST /v1/completions", {"model": "x"}, 404),
    ("POST /v1/completions", {"max_tokens": 10**6, "stream": True}, 413),
    *((f"POST {prefix}/tokenize", {"prompt": 5}, 400) for prefix in ("", "/v1")),
    *((f"POST {p}/tokenize", {"prompt": "a", "model": "x"}, 404) for p in ("", "/v1")),
    *((f"POST {prefix}/detokenize", {"tokens": [-1]}, 400) for prefix in ("", "/v1")),
    *((f"POST {p}/detokenize", {"tokens": [5], "model": "x"}, 404) for p in ("", "/v1")),
    *((f"GET {prefix}/tokenizer_info?model=x", None, 404) for prefix in ("", "/v1")),
    ("GET /v1/models/{name}", {"name": "x"}, 404),
]


@functools.cache
def described() -> dict[str, Any]:
    """The schema of a server with the default limits, in which no object has more than it says."""
    return strict(create_app(Settings()).openapi())


def strict(part: Any) -> Any:
    """A schema that refuses what it does not describe."""
    if isinstance(part, list):
        return [strict(item) for item in part]
    if not isinstance(part, dict):
        return part
    made = {key: strict(value) for key, value in part.items()}
    if part.get("type") == "object" and "properties" in part:
        made.setdefault("additionalProperties", False)
    return made


def assert_described(operation: str, response: httpx.Response) -> None:
    """The response's status, headers, media type and content are as the schema says."""
    method, path = operation.partition("?")[0].split()
    schema = described()
    said = schema["paths"][path][method.lower()]["responses"][str(response.status_code)]
    for name, header in said["headers"].items():
        if name not in response.headers and not header.get("required"):
            continue
        value = response.headers[name]
        number = header["schema"]["type"] == "integer"
        jsonschema_rs.validate(header["schema"], int(value) if number else value)
    media_type = response.headers["content-type"].partition(";")[0]
    content = {**said["content"][media_type]["schema"], "components": schema["components"]}
    validator = jsonschema_rs.validator_for(content)
    for item in items(media_type, response.text):
        validator.validate(item)
        if media_type == "text/event-stream" and item["data"] != "[DONE]":
            inner = content["properties"]["data"]["anyOf"][0]["contentSchema"]
            whole = {**inner, "components": schema["components"]}
            jsonschema_rs.validate(whole, json.loads(item["data"]))


def items(media_type: str, text: str) -> Iterator[Any]:
    """What the schema of a media type describes: the content, or each of its lines or events."""
    match media_type:
        case "application/json":
            yield json.loads(text)
        case "application/x-ndjson":
            yield from map(json.loads, text.splitlines())
        case "text/event-stream":
            for event in text.removesuffix("\n\n").split("\n\n"):
                yield {"data": event.removeprefix("data: ")}
        case _:
            yield text


def asked(server: Server, operation: str, sent: Any) -> httpx.Response:
    """The response to a body, to lines, or to parameters of the path."""
    method, path = operation.split()
    if method == "GET":
        return server.client.get(path.format(**sent or {}))
    if isinstance(sent, list):
        return server.client.post(path, content="\n".join(map(json.dumps, sent)))
    return server.client.post(path, json=sent)


def test_every_endpoint_of_the_schema_is_tried_here() -> None:
    paths = described()["paths"]
    found = {f"{m.upper()} {path}" for path, methods in paths.items() for m in methods}
    assert found == set(ANSWERS)


@pytest.mark.parametrize("operation", ANSWERS)
def test_answers_are_as_the_schema_says(server: Server, operation: str) -> None:
    for sent in ANSWERS[operation]:
        response = asked(server, operation, sent)
        assert response.status_code == 200, response.text[:500]
        assert_described(operation, response)


@pytest.mark.parametrize(("operation", "sent", "status"), REFUSED)
def test_refusals_are_as_the_schema_says(
    server: Server, operation: str, sent: Any, status: int
) -> None:
    response = asked(server, operation, sent)
    assert response.status_code == status, response.text[:500]
    assert_described(operation, response)


@pytest.mark.parametrize("operation", [name for name in ANSWERS if name.startswith("POST /v1")])
@pytest.mark.parametrize(
    ("error", "status"), [(OverloadError("full", 7), 503), (ZeroDivisionError(), 500)]
)
def test_failures_are_as_the_schema_says(
    server: Server,
    operation: str,
    error: Exception,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(type(server.app.state.catalog), "check", failing(error))
    response = asked(server, operation, ANSWERS[operation][0])
    assert response.status_code == status
    assert_described(operation, response)


def nullable(field: dict[str, Any]) -> bool:
    """Whether a field may be null."""
    return {"type": "null"} in field.get("anyOf", [])


@pytest.mark.parametrize("name", [n for n in described()["components"]["schemas"] if "Req" in n])
def test_a_field_that_may_be_left_out_may_be_null_and_says_so(server: Server, name: str) -> None:
    schemas = described()["components"]["schemas"]
    for field, said in schemas[name]["properties"].items():
        assert nullable(said) == (field not in schemas[name].get("required", ())), field


def test_the_parts_of_a_body_say_so_too() -> None:
    schemas = described()["components"]["schemas"]
    for name in ("StreamOptions", "Utterance", "Hypothesis", "BulkLine", "BatchLine"):
        fields, required = schemas[name]["properties"], schemas[name].get("required", ())
        assert {field for field, said in fields.items() if not nullable(said)} == set(required)


def test_a_default_above_a_limit_is_the_limit(tiny_folder: Path) -> None:
    with serving(settings_for(tiny_folder, max_completion_tokens=3, max_top_k=4)) as small:
        assert small.ask("/v1/completions", ignore_eos=True)["usage"]["completion_tokens"] == 3
        assert small.post("/v1/completions", max_tokens=16).status_code == 413
        refused = small.post("/v1/completions", min_tokens=5)  # above the limit, not the default
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "min_tokens"
        assert len(small.ask("/v1/next", input="a")["data"]) == 4
        assert small.post("/v1/next", input="a", top_k=10).status_code == 413
        schemas = small.app.openapi()["components"]["schemas"]
    assert schemas["CompletionRequest"]["properties"]["max_tokens"]["default"] == 3
    assert schemas["NextRequest"]["properties"]["top_k"]["default"] == 4


def test_the_schema_names_the_limits_of_its_server() -> None:
    changed = create_app(Settings(max_completion_tokens=77, max_stop_strings=3, max_top_k=9))
    schemas = changed.openapi()["components"]["schemas"]
    fields = schemas["CompletionRequest"]["properties"]
    assert fields["max_tokens"]["anyOf"][0]["maximum"] == 77
    assert fields["stop"]["maxItems"] == fields["bad_words"]["anyOf"][0]["maxItems"] == 3
    assert schemas["NextRequest"]["properties"]["top_k"]["anyOf"][0]["maximum"] == 9


def test_the_description_names_every_status_of_an_error(server: Server) -> None:
    schema = server.client.get("/openapi.json").json()
    operations = [one for path in schema["paths"].values() for one in path.values()]
    statuses = {status for one in operations for status in one["responses"] if status >= "4"}
    assert "504" in statuses
    described = schema["info"]["description"]
    assert [status for status in sorted(statuses | {"408"}) if status not in described] == []
