"""uvicorn's server with a message at the start and an orderly end."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn, cast

import typer
import uvicorn

from app.server.http1 import CLOSE, Http1
from app.server.sockets import has_unread, refuse_new

_log = logging.getLogger(__name__)

_TRY = '{"input": "The quick brown fox jumps over the lazy dog."}'
_LAST_SECONDS = 2
"""Time for responses that say that the server stops; then connections are closed."""
_ACCEPT_SECONDS = 0.1
"""Time for connections that are being established to be accepted."""
_FIRST_SECONDS = 1.0
"""Time for the first request on a new connection: the client may be far away."""
_ACCEPTED_TOGETHER = 32
"""Connections accepted in one turn of the event loop. uvloop accepts one for each descriptor it
listens on: while turns took 100 ms, the last of 128 newcomers, a health check perhaps, waited more
than 10 s."""
_REPEAT_SECONDS = 0.1
"""Time after the first signal in which others are taken for the same: `timeout` and other launchers
send one to the process and again to its group."""
_IDLE_SECONDS = 0.1
"""Time for the next request on a connection that its client was not told to leave."""


def check_free(host: str, port: int) -> None:
    """Raises OSError if the address cannot be listened on; a model is loaded only after this."""
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _, address in addresses:
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                tried.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            tried.bind(address)


@dataclass(frozen=True, slots=True)
class Stop:
    """How a server stops.

    notice_seconds: from SIGTERM until no connections are accepted any more. drain_seconds: from
    then until `end` is called. leave: makes readiness false; called within a signal handler. end:
    ends the work that requests wait for, so that they are answered with an error. abandon: removes
    temporary files if a thread still runs, and returns whether one does.
    """

    notice_seconds: float
    drain_seconds: float
    leave: Callable[[], None]
    end: Callable[[], None]
    abandon: Callable[[], bool]


class Server(uvicorn.Server):
    """Prints an example request. Stops in steps, so that no request that has arrived is lost.

    SIGTERM: connections are still accepted for a while, and every answer closes its own; then open
    requests have time to finish; then they get an error. SIGINT skips the first step. A later
    signal ends the process at once (docs/decisions/0024-stopping-in-steps.md).
    """

    failed = False
    """Whether the server stops because of a fault."""
    _signalled: float | None = None
    _notice = False

    def __init__(self, config: uvicorn.Config, stop: Stop) -> None:
        super().__init__(config)
        config.timeout_graceful_shutdown = math.ceil(stop.drain_seconds) + _LAST_SECONDS
        self._stop = stop

    @property
    def _connections(self) -> list[Http1]:
        return cast(list[Http1], list(self.server_state.connections))

    def fail(self) -> None:
        """Stops because of a fault."""
        self.failed = self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; ends the process if the port is taken."""
        await super().startup(sockets)
        await self._listen_more()
        port = self.servers[0].sockets[0].getsockname()[1]
        host = self.config.host
        where = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        typer.echo(f"convlm serves {where} (API: {where}/docs). Try:")
        typer.echo(f"curl {where}/v1/score -d '{_TRY}'")

    async def _listen_more(self) -> None:
        """Listens on further descriptors of the same sockets, where that accepts more at a time."""
        loop, config = asyncio.get_running_loop(), self.config
        if not type(loop).__module__.startswith("uvloop"):
            return
        protocol = functools.partial(
            cast(Callable[..., asyncio.Protocol], config.http_protocol_class),
            config=config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        with suppress(OSError):  # without descriptors for it the server runs all the same
            for listening in list(self.servers[0].sockets):
                for _ in range(_ACCEPTED_TOGETHER - 1):
                    copy = socket.socket(fileno=os.dup(listening.fileno()))
                    server = await loop.create_server(protocol, sock=copy, backlog=config.backlog)
                    self.servers.append(server)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins the stop, or ends the process. uvicorn would raise the signal again at the end."""
        now = time.monotonic()
        if self._signalled is not None:
            if now - self._signalled >= _REPEAT_SECONDS:
                self._stop.abandon()
                end_process(int(self.failed or bool(self.server_state.tasks)))
            return
        self._signalled = now
        self._stop.leave()
        self._notice = sig != signal.SIGINT
        self.should_exit = True

    async def _serve(self, sockets: list[socket.socket] | None = None) -> None:
        await super()._serve(sockets)
        if self._stop.abandon():  # nobody waits for it, and it cannot be interrupted
            end_process(int(self.failed))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, after a notice; stops the work after `drain_seconds`."""
        self._close_after_answers()
        if self._notice:
            _log.info("stopping: connections are accepted for %g s", self._stop.notice_seconds)
            await asyncio.sleep(self._stop.notice_seconds)
        await self._accept_rest()
        tasks = [asyncio.create_task(each) for each in (self._end_work(), self._close_idle())]
        try:
            await super().shutdown(sockets)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept_rest(self) -> None:
        """Accepts what is established; closing the listening sockets would reset it."""
        listening = [each.fileno() for server in self.servers for each in server.sockets]
        for descriptor in listening:
            refuse_new(descriptor)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._stop.drain_seconds):
                await asyncio.sleep(_ACCEPT_SECONDS)
                while any(map(has_unread, listening)):
                    await asyncio.sleep(_ACCEPT_SECONDS / 10)

    def _close_after_answers(self) -> None:
        """Has every answer that has not begun close its connection, and tell so."""
        headers = self.server_state.default_headers
        self.server_state.default_headers = [*headers, CLOSE]
        for connection in self._connections:
            connection.close_after_answer()

    async def _close_idle(self) -> None:
        """Closes connections that are idle again, and later those that have never sent a byte."""
        began = time.monotonic()
        while True:
            await asyncio.sleep(_IDLE_SECONDS)
            for connection in self._connections:
                connection.shutdown()
                if time.monotonic() - began > _FIRST_SECONDS:
                    connection.close_if_silent()

    async def _end_work(self) -> None:
        await asyncio.sleep(self._stop.drain_seconds)
        self._stop.end()
        for connection in self._connections:
            if connection.idle:  # a part of a head is all that has arrived
                connection.transport.close()


def end_process(status: int) -> NoReturn:
    """Ends the process without waiting for its threads."""
    with suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
