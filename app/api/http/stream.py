"""Responses that are sent in parts and release resources when they end."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing

from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.errors import DeadlineError, EngineError, NotReadyError, OverloadError

_log = logging.getLogger(__name__)

MAX_BUFFERED_ENTRIES = 50_000
"""Answers with more entries are sent as they are computed, instead of being collected first."""

_SLICE_BYTES = 1 << 18
"""Longer answers are sent in slices: the transport copies what the connection does not take."""


class HoldingResponse(StreamingResponse):
    """Closes `held` however it ends, even when its client left before it began.

    If the engine fails or the request's time is over, the response breaks off: its status has been
    sent already.
    """

    def __init__(self, parts: AsyncGenerator[bytes], media_type: str, held: AsyncExitStack) -> None:
        super().__init__(parts, media_type=media_type)
        self._parts, self._held = parts, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held, aclosing(self._parts):
            try:
                await super().__call__(scope, receive, send)
            except (NotReadyError, EngineError, OverloadError, DeadlineError) as error:
                _log.error("a response is aborted: %s", error)


async def after(first: bytes, parts: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """Parts of which the first was awaited, so that an error before it is a status."""
    yield first
    async for part in parts:
        yield part


def sliced(parts: Sequence[bytes | bytearray]) -> Response:
    """The response of JSON that is complete, sent in slices if it is long."""
    if sum(map(len, parts)) > _SLICE_BYTES:
        return HoldingResponse(_slices(parts), "application/json", AsyncExitStack())
    return Response(b"".join(parts), media_type="application/json")


async def _slices(parts: Sequence[bytes | bytearray]) -> AsyncGenerator[bytes]:
    small = bytearray()
    for part in parts:
        small += part[:_SLICE_BYTES]
        if len(small) < _SLICE_BYTES:
            continue
        yield bytes(small)
        small.clear()
        for first in range(_SLICE_BYTES, len(part), _SLICE_BYTES):
            yield bytes(part[first : first + _SLICE_BYTES])
    yield bytes(small)
