"""uvicorn's server, which says where it listens once it does."""

from __future__ import annotations

import socket

import typer
import uvicorn

_TRY = '{"input": "The quick brown fox jumps over the lazy dog."}'


class Server(uvicorn.Server):
    """Prints a request to try."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; ends the process when the port cannot be had."""
        await super().startup(sockets)
        port = self.servers[0].sockets[0].getsockname()[1]
        host = self.config.host
        where = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        typer.echo(f"convlm serves {where} (API: {where}/docs). Try:")
        typer.echo(f"curl {where}/v1/score -d '{_TRY}'")
