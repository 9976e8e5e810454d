"""A response that comes in parts, and what it holds until it ends."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send


class HoldingResponse(StreamingResponse):
    """Lets go of what it holds however it ends, even when its client left before it began."""

    def __init__(self, parts: AsyncGenerator[bytes], media_type: str, held: AsyncExitStack) -> None:
        super().__init__(parts, media_type=media_type)
        self._parts, self._held = parts, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held, aclosing(self._parts):
            await super().__call__(scope, receive, send)
