"""Reads a request's body with a limit on its bytes, and parses it directly as its model.

FastAPI would first parse JSON with a parser that fails on deep nesting; here pydantic's parser,
which limits the depth, parses and validates.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from functools import cache, partial
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import Request
from pydantic import BeforeValidator, TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect

from app.api.http.errors import from_validation, invalid_json
from app.api.http.json_counts import JsonCounts
from app.api.http.json_slices import SLICE_BYTES, load
from app.api.http.open_bodies import OpenBodies
from app.errors import RequestError, TooLargeError
from app.settings import Settings
from app.wire.fields import NullIsDefault

if TYPE_CHECKING:
    from app.api.http.deadlines import Deadline

Model = TypeVar("Model", bound=NullIsDefault)

INLINE_BYTES = 1 << 16
"""A longer body is counted before it is parsed, and parsed on another thread; one that is longer
than SLICE_BYTES too in slices, one such body after the other."""
SPARE_PARTS = 1 << 15
"""Strings, lists and objects of a body besides its texts: names, biases, unknown fields. So many
are parsed in about 20 ms."""
SCORED_PER_BYTE = 0.2
"""Tokens of a byte where all are scored: English has 4 bytes a token, ids have 5."""
_SHORT_BYTES = 4096
"""Length up to which a body may consist mostly of the names of fields."""
_VALUE_BYTES = 64
"""Memory that a value takes beyond its bytes in the body, about: a number in a list has 40."""
_WATCH_SECONDS = 0.1
"""A request that is answered sooner is not watched: a cancelled timer takes 2 microseconds of the
event loop, a task that waits for the client 26. Under load requests take up to 50 ms."""


async def read(
    request: Request,
    model: type[Model],
    deadline: Deadline | None = None,
    *,
    tokens_per_byte: float | None = 0.0,
) -> Model:
    """Reads and parses the body, once the server is ready; counts the fields that it ignores.

    Parsing a long one ends when the client leaves, or at a deadline. tokens_per_byte: of a long
    body, those that the engine reads, about; None if it needs no engine. Raises NotReadyError,
    OverloadError, RequestError, TooLargeError, ClientDisconnect, DeadlineError.
    """
    state = request.app.state
    state.catalog.check()
    settings: Settings = state.catalog.settings
    if tokens_per_byte is not None:  # before anything is spent on a body that would be refused
        state.catalog.check_room(partial(_tokens, request, tokens_per_byte, settings))
    raw, held = bytearray(), None
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
        if len(raw) > INLINE_BYTES:
            held = held or state.open_bodies.open()
            held.hold(len(raw))
    try:
        if held is None:
            body = model.model_validate_json(raw)
        else:
            with unless_gone(request), deadline or nullcontext():
                body = await parse(model, raw, settings, held.bodies, held.add)
    except ValidationError as error:
        check_not_encoded(request)
        raise from_validation(error) from None
    if body.model_extra:
        state.metrics.ignored_fields.inc(len(body.model_extra))
    return body


def _tokens(request: Request, tokens_per_byte: float, settings: Settings) -> int:
    """The tokens of a body that has not come, about; 1 if it says nothing of its length."""
    length = request.headers.get("content-length", "")
    known = int(length) if length.isascii() and length.isdigit() else 0
    tokens = max(0, known - _SHORT_BYTES) * tokens_per_byte
    return max(1, min(int(tokens), settings.max_request_tokens))


async def parse(
    model: type[Model],
    raw: bytes | bytearray,
    settings: Settings,
    bodies: OpenBodies,
    hold: Callable[[int], None],
) -> Model:
    """Parses a body, or a line of one. hold: counts bytes more for it among all open bodies.

    Raises ValidationError, RequestError, TooLargeError, OverloadError.
    """
    if len(raw) <= INLINE_BYTES:
        return model.model_validate_json(raw)
    values = await asyncio.to_thread(_count_values, model, raw, settings)
    hold(values * _VALUE_BYTES)
    if len(raw) <= SLICE_BYTES:
        return await asyncio.to_thread(model.model_validate_json, raw)
    loop, parser = asyncio.get_running_loop(), bodies.parser
    gone = threading.Event()
    try:
        return await loop.run_in_executor(parser, _parse_in_slices, model, bytes(raw), gone)
    finally:
        gone.set()  # a parser that is still at work leaves off: others wait for it


def _parse_in_slices(model: type[Model], raw: bytes, gone: threading.Event) -> Model:
    """As `model_validate_json`, except for the message about what is not JSON.

    Raises UnwantedError if the request is gone.
    """
    try:
        value = load(raw, wanted=lambda: not gone.is_set())
    except ValueError as error:
        raise invalid_json(str(error)) from None
    adapter: TypeAdapter[Model] = _adapter(model)
    return adapter.validate_json(b"null", context=value)


@cache
def _adapter(model: type[Any]) -> TypeAdapter[Any]:
    """Validates its context as JSON: the strict rules for Python's objects are others."""
    parsed = BeforeValidator(lambda _, info: info.context)
    return TypeAdapter(Annotated[model, parsed])  # type: ignore[arg-type]


def _count_values(model: type[Model], raw: bytes | bytearray, settings: Settings) -> int:
    """The values of a long body, at most. Raises TooLargeError for more than it may have."""
    limits = {name: getattr(settings, name) for name in model.parts}
    parts = SPARE_PARTS + sum(limits[name] * count for name, count in model.parts.items())
    commas = parts + settings.max_request_tokens
    counts = JsonCounts()
    for first in range(0, len(raw), SLICE_BYTES):
        counts.feed(bytes(raw[first : first + SLICE_BYTES]))
        if counts.parts > parts:
            named = "".join(f", which {name}, {limit}, allows" for name, limit in limits.items())
            raise TooLargeError(f"body: over {parts} strings, lists and objects{named}")
        if counts.commas > commas:
            limit = settings.max_request_tokens
            raise TooLargeError(f"body: over the limit max_request_tokens, {limit}")
        if counts.long_number:
            raise RequestError("body: a number of more than 512 digits")
    return counts.parts + counts.commas


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
