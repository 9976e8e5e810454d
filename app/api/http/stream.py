"""Responses that are sent in parts and release resources when they end."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing

from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.errors import EngineError, NotReadyError

_log = logging.getLogger(__name__)

_JSON = "application/json"
MAX_BUFFERED_ENTRIES = 50_000
"""Answers with more entries are sent as they are computed, instead of being collected first."""


class HoldingResponse(StreamingResponse):
    """Closes `held` however it ends, even when its client left before it began.

    If the engine fails, the response breaks off: its status has been sent already.
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


async def json_response(parts: AsyncGenerator[bytes], entries: int) -> Response:
    """A JSON document, sent in its parts if its lists have many entries.

    The first part must come after every check that can refuse the request, so that a refusal has
    its status.
    """
    first = await anext(parts)
    if entries > MAX_BUFFERED_ENTRIES:
        held = AsyncExitStack()
        await held.enter_async_context(aclosing(parts))
        return HoldingResponse(_after(first, parts), _JSON, held)
    async with aclosing(parts):
        return Response(first + b"".join([part async for part in parts]), media_type=_JSON)


async def _after(first: bytes, parts: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    yield first
    async for part in parts:
        yield part
