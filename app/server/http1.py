"""HTTP/1.1 of uvicorn, corrected where it loses requests or responses or violates the protocol."""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import TYPE_CHECKING, Any, cast

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from app.server.half_closed import HalfClosed
from app.server.heads import (
    HEAD_BYTES,
    TOO_LARGE,
    URL_TOO_LONG,
    Refusal,
    invalid,
    objection,
    offers,
    to_origin_form,
)
from app.server.sockets import has_unread
from app.server.transports import Flow, LingeringTransport, is_full, without_chunks

if TYPE_CHECKING:
    from app.server.connections import Connections

_log = logging.getLogger(__name__)

_PARSED_BYTES = 1 << 10
"""Bytes that are parsed at a time, so that a packet of thousands of small requests is not made
thousands of objects: at most 36 requests wait besides those of `is_full`."""
_CHUNK_BYTES = 32
"""Bytes besides its content that a chunk may have without being counted."""
CLOSE = (b"connection", b"close")
"""A default header of all answers of a server that stops."""


class Http1(HalfClosed):
    """uvicorn's protocol, with differences besides those of `HalfClosed`.

    An offer to upgrade to another protocol is ignored. Java's HttpClient offers HTTP/2
    (`Upgrade: h2c`) with the first request of each connection. A server may ignore that (RFC 9110,
    section 7.8), but the parser treats such a request as one without a body and stops after its
    head, and uvicorn drops the rest. So the parser gets the request again, without the offer.

    An HTTP/1.0 client gets no chunks (RFC 9112, section 6.1): a body of unknown length ends with
    the connection.

    What waits for its turn, the head and the time that a client takes are bounded, by `bounds`
    (docs/decisions/0023-connections.md).

    What is not HTTP/1.1 is answered as every other error, after the answers to earlier requests.
    """

    flow: Flow
    messages = received = 0
    """Requests that have begun, and packets: they tell whether a client makes progress."""
    _room = HEAD_BYTES
    """Bytes that may still come beside the content of the request's body."""
    _held = b""
    """Bytes that were read and not parsed, since enough requests wait."""
    _refused = _lingering = False
    """Whether what comes is discarded; whether the last response is sent."""

    def __init__(self, *args: Any, bounds: Connections, **options: Any) -> None:
        super().__init__(*args, **options)
        self.bounds = bounds

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As uvicorn's, and counts the connection."""
        super().connection_made(transport)
        self.flow = Flow(transport)
        self.bounds.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn's, and counts the connection no longer."""
        self.bounds.leave(self)
        super().connection_lost(exc)

    # The server stops

    @property
    def idle(self) -> bool:
        """Whether no complete head waits for its response."""
        return self.cycle is None or self.cycle.response_complete

    def close_after_answer(self) -> None:
        """Closes the connection after the response, if that can still tell the client so."""
        if not self.idle and not self.cycle.response_started:
            self._close_after(self.cycle)

    def shutdown(self) -> None:
        """Closes the connection if it is idle after a request; uvicorn's resets what arrives."""
        self.close_after_answer()
        if self.cycle is not None:
            self.close_if_silent()

    def close_if_silent(self) -> None:
        """Closes an idle connection unless a part of a request has arrived."""
        if not self.idle or self.in_head or self._held or self._lingering:
            return
        if not has_unread(self.transport.get_extra_info("socket").fileno()):
            LingeringTransport(self.transport, self._linger_in_body).close()

    # Requests

    def data_received(self, data: bytes) -> None:
        """Parses as much as may wait, and keeps the rest until requests are answered."""
        self.received += 1
        data, at = self._held + data, 0
        while at < len(data) and not self._refused and not is_full(self.pipeline):
            at += self._parse(data[at : at + _PARSED_BYTES])
        self._held = b"" if self._refused else data[at:]
        if self._held:
            self.flow.held = True
            self.flow.pause_reading()
        # uvicorn stops reading while a request waits, and would not notice that the client leaves
        elif (
            self.pipeline
            and len(self.cycle.body) <= HIGH_WATER_LIMIT
            and not self.transport.is_closing()
        ):
            self.flow.resume_reading()

    def _parse(self, data: bytes) -> int:
        """Parses bytes; returns the number of those that are done with."""
        self._room -= len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as stopped:
            return self._without_offer(stopped.args[0])
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, httptools.HttpParserError | ValueError):
                _log.error("a head was not taken", exc_info=error)
            self._refuse(invalid(str(error.__context__)))
        except httptools.HttpParserError as error:
            self._refuse(invalid(str(error)))
        if self._room < 0 and (self.in_head or (self.cycle and self.cycle.more_body)):
            self.bounds.report("head_too_large")
            long = self.in_head and len(self.url) > HEAD_BYTES // 2
            self._refuse(URL_TOO_LONG if long else TOO_LARGE)
        return len(data)

    @property
    def in_head(self) -> bool:
        """Whether a head has begun and is not complete."""
        return self.scope is not None and (self.cycle is None or self.cycle.scope is not self.scope)

    def on_message_begin(self) -> None:
        """As uvicorn's, and counts bytes anew."""
        super().on_message_begin()
        self.messages += 1
        self._room = HEAD_BYTES

    def on_headers_complete(self) -> None:
        """As uvicorn's; also takes absolute URLs, and keeps trailers out of the headers."""
        if offers(self.parser, self.headers):
            return
        if not self.url.startswith(b"/"):
            self.url = to_origin_form(self.url, self.headers)
        super().on_headers_complete()
        self.headers = []

    def on_body(self, body: bytes) -> None:
        """As uvicorn's, and takes the content out of the bytes that are counted."""
        self._room = min(HEAD_BYTES, self._room + len(body) + _CHUNK_BYTES)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """As uvicorn's, which forgets the end of a body that came after its response."""
        if not offers(self.parser, self.headers):
            self.cycle.more_body = False
            super().on_message_complete()
            if self._lingering:
                self.transport.close()

    def on_response_complete(self) -> None:
        """As uvicorn's, without its timer, and parses what was held."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.held = False
        self.flow.resume_reading()
        if self._lingering:
            self.pipeline.clear()
        elif self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        if self._held:
            self.data_received(b"")

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if self._lingering:  # what comes after the last response
            return
        scope, bounds = cycle.scope, self.bounds
        refusal = objection(scope["http_version"], scope["headers"]) or bounds.overload(
            self, scope["path"]
        )
        if refusal is not None:
            app = self._refusing(cycle, refusal)
        if not cycle.keep_alive or bounds.is_guest(self) or CLOSE in cycle.default_headers:
            self._close_after(cycle)
        if scope["http_version"] != "1.1":
            app = without_chunks(cycle, app)
        super()._start_asgi_task(cycle, app)

    # Offers of other protocols

    def _without_offer(self, parsed: int) -> int:
        """Parses the head again after the parser has stopped at its end. parsed: bytes until there.

        Returns that number.
        """
        if not offers(self.parser, self.headers):  # CONNECT, which has got its response
            self.cycle.keep_alive, self._refused = False, True
            return parsed
        version = self.parser.get_http_version().encode()
        head = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        head += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._parse(b"\r\n".join([*head, b"", b""]))
        return parsed

    # Refusals and time-outs

    def waits(self) -> tuple[str, int]:
        """What the connection waits for from its client, and a number that grows with progress.

        `head`; `body`; `pause`: of a body whose answers are all sent so far; `rest`: the body of a
        request that is answered; `idle`: the next request; `linger`: the end, after a refusal;
        empty if the client waits for the server.
        """
        if self._lingering:
            return ("linger", 0) if self._refused else ("rest", self.messages)
        answering = self._answering
        cycle = cast("RequestResponseCycle | None", self.cycle)  # None before the first request
        if answering is not None and not answering.response_complete:
            paused = self.flow.read_paused or answering.waiting_for_100_continue
            read = answering is cycle and answering.more_body and not paused
            if not read or _owes(answering):
                return "", 0
            return "pause" if answering.response_started else "body", self.received
        if cycle is None:
            return "head", 0
        if cycle.more_body:
            return "rest", self.messages
        return "head" if self.in_head else "idle", self.messages

    def is_unused(self) -> bool:
        """Whether the connection has sent nothing of a request that is not answered."""
        return self.waits()[0] in ("head", "idle") and not self.in_head

    def time_out(self, kind: str) -> None:
        """Ends the connection, which has waited too long for something."""
        if kind not in ("idle", "linger"):
            self.bounds.report("head_timeout" if kind == "head" else "body_timeout")
        part = "body" if kind == "body" else "head"
        if kind == "body" or self.in_head:
            seconds = self.bounds.limits.seconds(kind)
            message = f"the {part} of the request did not come: {part}_seconds, {seconds:g}"
            late = Refusal(408, message, "request_timeout")
            self._refuse(self.bounds.overload(self, "") or late)
        else:
            self.transport.close()

    def _refuse(self, refusal: Refusal) -> None:
        """Answers, after what is due, the request that is being read, and reads no more."""
        if self._refused:
            return
        self._refused = True
        last = cast("RequestResponseCycle | None", self.cycle)
        if last is not None and not self.in_head:
            if last.response_complete or not last.more_body or last.response_started:
                self._end(last)
                return
            if self.pipeline and self.pipeline[0][0] is last:
                self.pipeline.popleft()
            else:  # the application has the request: it is told that the client has left
                last.disconnected = True
                last.message_event.set()
                self._answering = None
        self._answer(refusal)

    def _end(self, last: RequestResponseCycle) -> None:
        """Ends the connection after a request whose response has begun."""
        last.keep_alive = False
        if last.response_complete or last.more_body:
            self.transport.close()

    def _answer(self, refusal: Refusal) -> None:
        unread = {"method": "-", "path": "-", "query_string": b""}  # of a head, for the log
        self.scope = cast(Any, unread | cast(Any, self.scope))
        self.cycle = cycle = RequestResponseCycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=False,
            on_response=self.on_response_complete,
        )
        cycle.more_body = False
        app = self._refusing(cycle, refusal)
        if self._answering is None or self._answering.response_complete:
            self._answering = cycle
            super()._start_asgi_task(cycle, app)
        else:
            self.pipeline.appendleft((cycle, app))

    def _refusing(self, cycle: RequestResponseCycle, refusal: Refusal) -> Any:
        """The application that answers with a refusal; the connection ends after it."""
        cycle.keep_alive = False
        cycle.transport = cast(Any, LingeringTransport(self.transport, self._linger))
        return self.bounds.refusing(refusal)

    def _linger(self) -> bool:
        self._refused = self._lingering = True
        return True

    def _close_after(self, cycle: RequestResponseCycle) -> None:
        """Closes the connection after a response, and after the body of its request."""
        cycle.keep_alive = False
        if cycle.transport is self.transport:
            cycle.transport = cast(Any, LingeringTransport(self.transport, self._linger_in_body))

    def _linger_in_body(self) -> bool:
        self._lingering = self.cycle is not None and self.cycle.more_body
        return self._lingering


def _owes(cycle: RequestResponseCycle) -> bool:
    """Whether the application still works on what it has read of a body."""
    owes = cycle.scope["state"].get("owes")
    return owes is not None and owes()


def bounded(bounds: Connections) -> type[asyncio.Protocol]:
    """The protocol with these bounds, as uvicorn makes one for each connection."""
    return cast(type[asyncio.Protocol], functools.partial(Http1, bounds=bounds))
