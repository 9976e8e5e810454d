"""Transports and applications that stand between uvicorn's responses and the connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection

    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

_MOST_WAITING = 8
"""Requests that may wait on one connection while more are read from it."""
BEGINNING = b"HTTP/1.1 "
"""The first bytes of every response."""


class BegunTransport:
    """A transport to which the first bytes of a response were written in advance."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._ahead = 0

    def send_ahead(self) -> None:
        """Writes the next byte of the beginning."""
        if self._ahead < len(BEGINNING):
            self._transport.write(BEGINNING[self._ahead : self._ahead + 1])
            self._ahead += 1

    def write(self, data: bytes) -> None:
        """Writes data without the bytes that were sent in advance."""
        assert BEGINNING.startswith(data[: self._ahead])
        self._transport.write(data[self._ahead :])
        self._ahead = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class LingeringTransport:
    """A transport of which `close` ends only the sending side.

    If a connection is closed while the client still sends, its system answers with a reset, which
    may discard the response before the client has read it. linger: called at the close; where it
    returns False nothing more comes, and the whole connection is closed.
    """

    def __init__(self, transport: asyncio.Transport, linger: Callable[[], bool]) -> None:
        self._transport, self._linger = transport, linger

    def close(self) -> None:
        """Ends the sending side, or the connection, after what is written."""
        if not self._transport.is_closing():
            if self._linger():
                self._transport.write_eof()
            else:
                self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Flow(FlowControl):
    """uvicorn's flow control.

    held: whether reading stays paused even if `resume_reading` is called.
    """

    held = False

    def resume_reading(self) -> None:
        """Reads on, unless bytes that were read already wait for their turn."""
        if not self.held:
            super().resume_reading()


def is_full(waiting: Collection[tuple[RequestResponseCycle, Any]]) -> bool:
    """Whether so many requests wait on a connection, or so much of their bodies, that no more are
    read."""
    if len(waiting) >= _MOST_WAITING:
        return True
    return bool(waiting) and sum(len(each.body) for each, _ in waiting) > HIGH_WATER_LIMIT


def without_chunks(cycle: RequestResponseCycle, app: ASGIApp) -> ASGIApp:
    """The application for an HTTP/1.0 client, which reads a body of unknown length until the
    connection ends and does not know `100 Continue`."""
    cycle.keep_alive = cycle.waiting_for_100_continue = False

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        unbounded = False

        async def unchunked(message: Message) -> None:
            nonlocal unbounded
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message["headers"]}
                unbounded = b"content-length" not in names
                if unbounded:
                    cycle.chunked_encoding = False
            elif unbounded:  # uvicorn compares the two
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, unchunked)

    return run
