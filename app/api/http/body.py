"""Reads a request's body with a limit on its bytes, and parses it directly as its model.

FastAPI would first parse JSON with a parser that fails on deep nesting; here pydantic's parser,
which limits the depth, parses and validates.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from app.api.http.errors import from_validation
from app.errors import RequestError, TooLargeError
from app.settings import Settings

Model = TypeVar("Model", bound=BaseModel)

_INLINE_BYTES = 1 << 16
MAX_PARTS = 100_000
"""Strings, lists and objects of a body. Millions of them, which no request needs, stop the
interpreter for seconds while they are created and visited by the garbage collector."""
_PARTS = re.compile(rb'"[^"]*+(?:"|\Z)|[\[{,]')
_WATCH_SECONDS = 0.1
"""A request that is answered sooner is not watched: a cancelled timer takes 2 microseconds of the
event loop, a task that waits for the client 26. Under load requests take up to 50 ms."""


async def read(request: Request, model: type[Model]) -> Model:
    """Reads and parses the body, once the server is ready; counts the fields that it ignores.

    Raises NotReadyError, OverloadError, RequestError, TooLargeError.
    """
    state = request.app.state
    state.catalog.check()
    state.catalog.check_room()  # before anything is spent on a body that would be refused
    settings: Settings = state.catalog.settings
    raw = bytearray()
    limit = settings.max_request_bytes
    more = True
    while more:  # as Request.stream, whose generator costs more
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        raw += message.get("body", b"")
        more = message.get("more_body", False)
        if len(raw) > limit:
            raise TooLargeError(f"body: over the limit max_request_bytes, {limit}", None)
    try:
        body = await parse(model, bytes(raw), settings)
    except ValidationError as error:
        check_not_encoded(request)
        raise from_validation(error) from None
    if body.model_extra:
        state.metrics.ignored_fields.inc(len(body.model_extra))
    return body


async def parse(model: type[Model], raw: bytes, settings: Settings) -> Model:
    """Parses a body, or a line of one. Raises ValidationError, TooLargeError."""

    def checked() -> Model:
        _check_parts(raw, settings)
        return model.model_validate_json(raw)

    if len(raw) <= _INLINE_BYTES:
        return model.model_validate_json(raw)
    return await asyncio.to_thread(checked)


def _check_parts(raw: bytes, settings: Settings) -> None:
    """Raises TooLargeError, before parsing, for JSON of more parts than any request needs."""
    most = max(MAX_PARTS, 4 * settings.max_request_texts)
    commas = settings.max_request_tokens + most
    parts = raw.count(b'"') // 2 + raw.count(b"[") + raw.count(b"{")
    if parts <= most and raw.count(b",") <= commas:
        return
    parts = most
    plain = raw.replace(rb"\\", b"").replace(rb"\"", b"")  # quotes that end no string
    for part in _PARTS.finditer(plain):  # commas and brackets inside strings do not count
        if plain[part.start()] == ord(","):
            commas -= 1
        else:
            parts -= 1
        if parts < 0:
            raise TooLargeError(f"body: over {most} strings, lists and objects")
        if commas < 0:
            limit = settings.max_request_tokens
            raise TooLargeError(f"body: over the limit max_request_tokens, {limit}")


def check_not_encoded(request: Request) -> None:
    """Raises RequestError if the body declares a content encoding."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        message = f"content-encoding: {encoding} is not supported; send the body uncompressed"
        raise RequestError(message, "content-encoding")


class unless_gone:
    """Cancels the rest of a handler when the client leaves; the body must have been read.

    Raises ClientDisconnect in place of the cancellation.
    """

    def __init__(self, request: Request) -> None:
        self._receive = request.receive
        self._watch: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._later = task.get_loop().call_later(_WATCH_SECONDS, self._begin)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._later.cancel()
        watch = self._watch
        if watch is None:
            return
        # only the watcher cancelled it, since the client left
        gone = kind is asyncio.CancelledError and watch.done() and not watch.cancelled()
        watch.cancel()
        if gone and self._task.uncancel() == 0:
            raise ClientDisconnect from None

    def _begin(self) -> None:
        self._watch = self._task.get_loop().create_task(
            _cancel_when_gone(self._receive, self._task)
        )


async def _cancel_when_gone(receive: Callable[[], Awaitable[Any]], task: asyncio.Task[Any]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    task.cancel()
