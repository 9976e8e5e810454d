"""A response that comes in parts, and what it holds until it ends."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing

from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.errors import EngineError, NotReadyError

_log = logging.getLogger(__name__)

_JSON = "application/json"
WHOLE_ENTRIES = 50_000
"""Answers with more entries are written as they come, instead of being held whole."""


class HoldingResponse(StreamingResponse):
    """Lets go of what it holds however it ends, even when its client left before it began.

    One that the engine fails is not completed: no status or error can say so any more.
    """

    def __init__(self, parts: AsyncGenerator[bytes], media_type: str, held: AsyncExitStack) -> None:
        super().__init__(parts, media_type=media_type)
        self._parts, self._held = parts, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held, aclosing(self._parts):
            try:
                await super().__call__(scope, receive, send)
            except (NotReadyError, EngineError) as error:
                _log.error("an answer breaks off: %s", error)


async def written(parts: AsyncGenerator[bytes], entries: int) -> Response:
    """A JSON document: whole, or in its parts if its lists have many entries.

    The first part must come once nothing can refuse the request any more, so that a refusal is a
    status.
    """
    first = await anext(parts)
    if entries > WHOLE_ENTRIES:
        held = AsyncExitStack()
        await held.enter_async_context(aclosing(parts))
        return HoldingResponse(_after(first, parts), _JSON, held)
    async with aclosing(parts):
        return Response(first + b"".join([part async for part in parts]), media_type=_JSON)


async def _after(first: bytes, parts: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    yield first
    async for part in parts:
        yield part
