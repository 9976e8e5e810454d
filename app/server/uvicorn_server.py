"""Where the server listens, and uvicorn's server, which says so and tells who is cut off."""

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
"""For the answers that say that the server stops; what is open after them is cut off."""


def check_free(host: str, port: int) -> None:
    """Raises OSError where one could not listen, before a model is loaded in vain."""
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _, address in addresses:
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                tried.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            tried.bind(address)


class Server(uvicorn.Server):
    """Prints a request to try. When it stops, open requests have some seconds to finish.

    drain_seconds: these. stop_work: called after them; it ends what requests still wait for, so
    that they are answered with an error that says so.
    """

    def __init__(
        self, config: uvicorn.Config, drain_seconds: float, stop_work: Callable[[], None]
    ) -> None:
        super().__init__(config)
        config.timeout_graceful_shutdown = math.ceil(drain_seconds) + _LAST_SECONDS
        self._drain_seconds, self._stop_work = drain_seconds, stop_work

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; ends the process when the port cannot be had."""
        await super().startup(sockets)
        port = self.servers[0].sockets[0].getsockname()[1]
        host = self.config.host
        where = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        typer.echo(f"convlm serves {where} (API: {where}/docs). Try:")
        typer.echo(f"curl {where}/v1/score -d '{_TRY}'")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, but for the work that is stopped."""
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
