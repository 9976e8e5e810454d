"""Reading a request's body: bounded while it arrives, then straight into its model.

FastAPI would parse JSON before validation, in a way that fails on deep nesting; here one parser
with a depth limit does both.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from app.api.http.errors import CLIENT_CLOSED, from_validation
from app.api.http.openapi import errors, reference
from app.errors import RequestError, TooLargeError
from app.settings import Settings

Model = TypeVar("Model", bound=BaseModel)

_INLINE_BYTES = 1 << 16
MOST_PARTS = 100_000
"""Strings, lists and objects of a body. Millions of them, which no request needs, stop the
interpreter for seconds while they are made and looked through for garbage."""
_PARTS = re.compile(rb'"[^"]*+(?:"|\Z)|[\[{,]')
_WATCH_SECONDS = 0.1
"""A request that is answered sooner is not watched: a timer that is cancelled costs 2 microseconds
of the event loop, a task that waits for the client 26. Requests of a crowd take up to 50 ms."""


async def read(request: Request, model: type[Model], settings: Settings) -> Model:
    """The body as `model`. Raises RequestError, TooLargeError."""
    raw = bytearray()
    limit = settings.max_request_bytes
    async for part in request.stream():
        raw += part
        if len(raw) > limit:
            raise TooLargeError(f"body: over the limit max_request_bytes, {limit}", None)
    try:
        return await parsed(model, bytes(raw), settings)
    except ValidationError as error:
        check_unpacked(request)
        raise from_validation(error) from None


async def parsed(model: type[Model], raw: bytes, settings: Settings) -> Model:
    """A body, or a line of one, as `model`. Raises ValidationError, TooLargeError."""

    def long() -> Model:
        _check_parts(raw, settings)
        return model.model_validate_json(raw)

    if len(raw) <= _INLINE_BYTES:
        return model.model_validate_json(raw)
    return await asyncio.to_thread(long)


def _check_parts(raw: bytes, settings: Settings) -> None:
    """Raises TooLargeError for JSON of more parts than any request has, before it is parsed."""
    most = max(MOST_PARTS, 4 * settings.max_request_texts)
    commas = settings.max_request_tokens + most
    parts = raw.count(b'"') // 2 + raw.count(b"[") + raw.count(b"{")
    if parts <= most and raw.count(b",") <= commas:
        return
    parts = most
    plain = raw.replace(rb"\\", b"").replace(rb"\"", b"")  # quotes that end no string
    for found in _PARTS.finditer(plain):  # what is in strings does not count
        if plain[found.start()] == ord(","):
            commas -= 1
        else:
            parts -= 1
        if parts < 0:
            raise TooLargeError(f"body: over {most} strings, lists and objects")
        if commas < 0:
            limit = settings.max_request_tokens
            raise TooLargeError(f"body: over the limit max_request_tokens, {limit}")


def check_unpacked(request: Request) -> None:
    """Raises RequestError for a body that says to be packed."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        message = f"content-encoding: {encoding} is not unpacked; send the body as it is"
        raise RequestError(message, "content-encoding")


async def unless_gone(request: Request, answer: Coroutine[Any, Any, Response]) -> Response:
    """Runs a handler, cancelling it when the client leaves; the body must have been read."""
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    watch: asyncio.Task[None] | None = None

    def begin() -> None:
        nonlocal watch
        watch = loop.create_task(_left(request.receive, task))

    later = loop.call_later(_WATCH_SECONDS, begin)
    try:
        return await answer
    except asyncio.CancelledError:
        # cancelled for the client alone: nobody else asked
        left = watch is not None and watch.done() and not watch.cancelled()
        if not (left and task.uncancel() == 0):
            raise
        return Response(status_code=CLIENT_CLOSED)
    finally:
        later.cancel()
        if watch is not None:
            watch.cancel()


async def _left(receive: Callable[[], Awaitable[Any]], task: asyncio.Task[Any]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    task.cancel()


def documented(model: type[BaseModel]) -> dict[str, Any]:
    """What OpenAPI says of a body that `read` parses, and of what may be wrong with it."""
    content = {"application/json": {"schema": reference(model)}}
    return {
        "requestBody": {"required": True, "content": content},
        "responses": {str(status): error for status, error in errors(400, 404, 413).items()},
    }
