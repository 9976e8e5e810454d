"""uvicorn's server with a message at the start and an orderly end."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable
from contextlib import suppress

import typer
import uvicorn

_TRY = '{"input": "The quick brown fox jumps over the lazy dog."}'
_LAST_SECONDS = 2
"""Time for responses that say that the server stops; then connections are closed."""


def check_free(host: str, port: int) -> None:
    """Raises OSError if the address cannot be listened on; a model is loaded only after this."""
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _, address in addresses:
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                tried.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            tried.bind(address)


class Server(uvicorn.Server):
    """Prints an example request. When it stops, open requests have time to finish.

    drain_seconds: that time. stop_work: called after it; ends the work that requests wait for, so
    that they are answered with an error.
    """

    def __init__(
        self, config: uvicorn.Config, drain_seconds: float, stop_work: Callable[[], None]
    ) -> None:
        super().__init__(config)
        config.timeout_graceful_shutdown = math.ceil(drain_seconds) + _LAST_SECONDS
        self._drain_seconds, self._stop_work = drain_seconds, stop_work

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; ends the process if the port is taken."""
        await super().startup(sockets)
        port = self.servers[0].sockets[0].getsockname()[1]
        host = self.config.host
        where = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        typer.echo(f"convlm serves {where} (API: {where}/docs). Try:")
        typer.echo(f"curl {where}/v1/score -d '{_TRY}'")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, and stops the work after `drain_seconds`."""
        ending = asyncio.create_task(self._end_work())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()
            with suppress(asyncio.CancelledError):
                await ending

    async def _end_work(self) -> None:
        await asyncio.sleep(self._drain_seconds)
        self._stop_work()
