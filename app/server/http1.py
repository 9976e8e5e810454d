"""HTTP/1.1 of uvicorn, corrected where it loses requests or responses or violates the protocol."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from typing import Any, cast

import httptools
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.server.sockets import has_unread

_BEGINNING = b"HTTP/1.1 "
"""The first bytes of every response."""
_MOST_WAITING = 8
"""Requests that may wait on one connection while more are read from it."""
_GRACE_SECONDS = 0.1
"""Time after the client's last byte; most responses are complete by then and need no probe."""
_PROBE_SECONDS, _GROWTH = 0.01, 4
"""Time from the first probe to the second, and the factor from each interval to the next.

A probe is answered with a reset after one round trip, 0.07 ms on the same machine. The last of the
nine bytes is sent 218 s after the first.
"""


class Http1(HttpToolsProtocol):
    """uvicorn's protocol, with three differences.

    An offer to upgrade to another protocol is ignored. Java's HttpClient offers HTTP/2
    (`Upgrade: h2c`) with the first request of each connection. A server may ignore that (RFC 9110,
    section 7.8), but the parser treats such a request as one without a body and stops after its
    head, and uvicorn drops the rest. So the parser gets the request again, without the offer.

    A client that has closed its sending side gets the responses to its complete requests. Only a
    write shows whether it has closed the other side too. So the first bytes of the response are
    sent in advance, one at a time (docs/decisions/0017-half-closed-connections.md).

    An HTTP/1.0 client gets no chunks (RFC 9112, section 6.1): a body of unknown length ends with
    the connection.
    """

    _parsed = _again = b""
    _answering: RequestResponseCycle | None = None
    """The request that is being answered; `cycle` is the one that was read last."""
    _intervals: Iterator[float] | None = None
    """Seconds until the next probes; None before the client has closed its sending side."""
    _probing: asyncio.TimerHandle | None = None

    # The server stops

    @property
    def idle(self) -> bool:
        """Whether no complete head waits for its response."""
        return self.cycle is None or self.cycle.response_complete

    def close_after_answer(self) -> None:
        """Closes the connection after the response, if that can still tell the client so."""
        if not self.idle and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """Closes the connection if it is idle after a request; uvicorn's resets what arrives."""
        self.close_after_answer()
        if self.cycle is not None:
            self.close_if_silent()

    def close_if_silent(self) -> None:
        """Closes an idle connection unless a part of a request has arrived."""
        cycle = self.cycle
        reading = self.scope is not None and (cycle is None or cycle.scope is not self.scope)
        unread = reading or has_unread(self.transport.get_extra_info("socket").fileno())
        if self.idle and not unread:
            self.transport.close()

    # Clients that have closed their sending side

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keeps the connection open as long as a complete request has no complete response."""
        if self.pipeline and self.pipeline[0][0].more_body:
            self.pipeline.popleft()  # the rest of its body will not come
        last = self.pipeline[0][0] if self.pipeline else self._answering
        if last is None or last.more_body or last.response_complete:
            return False
        last.keep_alive = False
        self.cycle = last
        self._probe_from_now()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn's, which notifies only the request that was read last."""
        if self._probing is not None:
            self._probing.cancel()
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        if self._intervals is not None:
            self._probe_from_now()
        if cycle.scope["http_version"] != "1.1":
            app = _without_chunks(cycle, app)
        super()._start_asgi_task(cycle, app)

    def _probe_from_now(self) -> None:
        if self._probing is not None:  # of a request that is answered already
            self._probing.cancel()
        self._intervals = (_PROBE_SECONDS * _GROWTH**n for n in range(len(_BEGINNING) - 1))
        self._probing = self.loop.call_later(_GRACE_SECONDS, self._probe)

    def _probe(self) -> None:
        """Sends one more byte of the response, unless the response has begun.

        The write fails, and the connection is lost, if the previous byte was answered with a reset.
        """
        cycle = self._answering
        if cycle is None or cycle.response_started or self.transport.is_closing():
            return
        if not isinstance(cycle.transport, _BegunTransport):
            cycle.transport = cast(asyncio.Transport, _BegunTransport(self.transport))
        cast(_BegunTransport, cycle.transport).send_ahead()
        assert self._intervals is not None
        interval = next(self._intervals, None)
        if interval is not None:
            self._probing = self.loop.call_later(interval, self._probe)

    # Offers of other protocols

    def data_received(self, data: bytes) -> None:
        while data:
            self._parsed, self._again = data, b""
            super().data_received(data)
            data = self._again
        # uvicorn stops reading while a request waits, and would not notice that the client leaves
        few = 0 < len(self.pipeline) < _MOST_WAITING
        if few and len(self.cycle.body) <= HIGH_WATER_LIMIT and not self.transport.is_closing():
            self.flow.resume_reading()

    def on_headers_complete(self) -> None:
        if not self._offers():
            if not self.url.startswith(b"/"):
                self._take_host_of_url()
            super().on_headers_complete()

    def _take_host_of_url(self) -> None:
        """Gives the Host header the host of an absolute URL (RFC 9112, section 3.2.2)."""
        url = httptools.parse_url(self.url)
        if url.host:
            host = b"[%b]" % url.host if b":" in url.host else url.host
            port = b":%d" % url.port if url.port else b""
            kept = [header for header in self.headers if header[0] != b"host"]
            self.headers[:] = [(b"host", host + port), *kept]

    def on_message_complete(self) -> None:
        if not self._offers():
            super().on_message_complete()

    def _offers(self) -> bool:
        """Whether a header of the request offers a protocol that is not supported."""
        if not self.parser.should_upgrade() or self._should_upgrade():
            return False
        # the parser treats every CONNECT as an upgrade
        asked = self.parser.get_method() != b"CONNECT"
        return asked and any(name == b"upgrade" for name, _ in self.headers)

    def _unsupported_upgrade_warning(self) -> None:
        """Called when the parser has stopped, while its exception is handled."""
        if not self._offers():
            super()._unsupported_upgrade_warning()
            return
        stopped = sys.exception()
        assert isinstance(stopped, httptools.HttpParserUpgrade)
        rest = self._parsed[stopped.args[0] :]
        version = self.parser.get_http_version().encode()
        head = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        head += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._again = b"\r\n".join([*head, b"", b""]) + rest


class _BegunTransport:
    """A transport to which the first bytes of a response were written in advance."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._ahead = 0

    def send_ahead(self) -> None:
        """Writes the next byte of the beginning."""
        if self._ahead < len(_BEGINNING):
            self._transport.write(_BEGINNING[self._ahead : self._ahead + 1])
            self._ahead += 1

    def write(self, data: bytes) -> None:
        """Writes data without the bytes that were sent in advance."""
        assert _BEGINNING.startswith(data[: self._ahead])
        self._transport.write(data[self._ahead :])
        self._ahead = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def _without_chunks(cycle: RequestResponseCycle, app: ASGIApp) -> ASGIApp:
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
