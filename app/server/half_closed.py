"""Responses to clients that have closed their sending side."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.server.transports import BEGINNING, BegunTransport

_GRACE_SECONDS = 0.1
"""Time after the client's last byte; most responses are complete by then and need no probe."""
_PROBE_SECONDS, _GROWTH = 0.01, 4
"""Time from the first probe to the second, and the factor from each interval to the next.

A probe is answered with a reset after one round trip, 0.07 ms on the same machine. The last of the
nine bytes is sent 218 s after the first.
"""


class HalfClosed(HttpToolsProtocol):
    """uvicorn's protocol, for clients that have closed their sending side too.

    They get the responses to their complete requests. Only a write shows whether a client has
    closed the other side too. So the first bytes of the response are sent in advance, one at a time
    (docs/decisions/0017-half-closed-connections.md).
    """

    _answering: RequestResponseCycle | None = None
    """The request that is being answered; `cycle` is the one that was read last."""
    _intervals: Iterator[float] | None = None
    """Seconds until the next probes; None before the client has closed its sending side."""
    _probing: asyncio.TimerHandle | None = None

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
        super()._start_asgi_task(cycle, app)

    def _probe_from_now(self) -> None:
        if self._probing is not None:  # of a request that is answered already
            self._probing.cancel()
        self._intervals = (_PROBE_SECONDS * _GROWTH**n for n in range(len(BEGINNING) - 1))
        self._probing = self.loop.call_later(_GRACE_SECONDS, self._probe)

    def _probe(self) -> None:
        """Sends one more byte of the response, unless the response has begun.

        The write fails, and the connection is lost, if the previous byte was answered with a reset.
        """
        cycle = self._answering
        if cycle is None or cycle.response_started or self.transport.is_closing():
            return
        if not isinstance(cycle.transport, BegunTransport):
            cycle.transport = cast(asyncio.Transport, BegunTransport(self.transport))
        cast(BegunTransport, cycle.transport).send_ahead()
        assert self._intervals is not None
        interval = next(self._intervals, None)
        if interval is not None:
            self._probing = self.loop.call_later(interval, self._probe)
