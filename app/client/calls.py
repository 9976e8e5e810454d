"""Requests, and how their answers are read: what both clients share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from app.client.errors import ClientError, refusal_of
from app.wire.completions import CompletionResponse
from app.wire.models import Model, ModelList
from app.wire.next import NextResponse
from app.wire.score import ScoreResponse

Answer = TypeVar("Answer")
Wire = TypeVar("Wire", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Call(Generic[Answer]):
    """A request. repeatable: whether it always has the same answer."""

    method: str
    path: str
    content: bytes | None
    repeatable: bool
    read: Callable[[bytes], Answer]


def post(path: str, body: Mapping[str, Any], *, repeatable: bool = False) -> Call[dict[str, Any]]:
    """Any body to any path; the answer is the JSON object."""
    return Call("POST", path, _json(body), repeatable, _object)


def score(texts: str | Sequence[Any], options: Mapping[str, Any]) -> Call[ScoreResponse]:
    """POST /v1/score."""
    content = _json({"input": _given(texts), **options})
    return Call("POST", "/v1/score", content, True, _reader(ScoreResponse))


def next_tokens(text: str | Sequence[int], options: Mapping[str, Any]) -> Call[NextResponse]:
    """POST /v1/next."""
    content = _json({"input": _given(text), **options})
    return Call("POST", "/v1/next", content, True, _reader(NextResponse))


def complete(
    prompt: str | Sequence[Any], options: Mapping[str, Any], *, stream: bool = False
) -> Call[CompletionResponse]:
    """POST /v1/completions. Not repeatable: without a seed every answer is different."""
    if options.get("stream") and not stream:
        raise TypeError("use the method `stream()` for an answer in chunks, not the option stream")
    body = {"prompt": _given(prompt), **options} | ({"stream": True} if stream else {})
    return Call("POST", "/v1/completions", _json(body), False, _reader(CompletionResponse))


def models() -> Call[list[Model]]:
    """GET /v1/models."""
    read = _reader(ModelList)
    return Call("GET", "/v1/models", None, True, lambda content: read(content).data)


def chunk_of(line: str) -> Iterator[CompletionResponse]:
    """The chunk in a line of server-sent events, if there is one. Raises ApiError."""
    name, _, event = line.partition(": ")
    if name != "data" or event == "[DONE]":
        return
    if event.startswith('{"error"'):
        raise refusal_of(json.loads(event), 500, "the stream failed")
    yield _reader(CompletionResponse)(event.encode())


def _given(texts: str | Sequence[Any]) -> str | list[Any]:
    """A text, or a list of texts or token ids. Raises TypeError for types that look like ids."""
    if isinstance(texts, str):
        return texts
    if isinstance(texts, bytes | bytearray | memoryview | Mapping | Set):
        raise TypeError(f"a text, or a list of texts or token ids, not {type(texts).__name__}")
    return list(texts)


def _json(body: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # a lone surrogate: the server refuses it with a reason
        return json.dumps(body).encode()


def _object(content: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(content)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise ClientError("the answer is not a JSON object; is the server convlm's?")
    return answer


def _reader(wire: type[Wire]) -> Callable[[bytes], Wire]:
    def read(content: bytes) -> Wire:
        try:
            return wire.model_validate_json(content)
        except ValidationError:
            raise ClientError(
                f"the answer is not a {wire.__name__}; is the server convlm's?"
            ) from None

    return read
