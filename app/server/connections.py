"""Limits and time-outs of all connections of a server."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.server.heads import Refusal
from app.server.memory import trim
from app.server.sockets import has_unread

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from app.server.http1 import Http1

    Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_log = logging.getLogger(__name__)

_SWEEP_SECONDS = 1.0
"""Time between two looks at all connections. A look takes about a microsecond for each; a timer for
each request would take two."""
_GUEST_SECONDS = 2.0
"""Time in which a connection over the limit has to send its head."""
_LINGER_SECONDS = 1.0
"""Time that a refused client has to read its answer, while what it sends is discarded."""
_CROWD = 100
"""Connections that have ended since memory was given back; each may have held 64 KiB of a body."""
HEALTH = frozenset(("/livez", "/readyz", "/health", "/ping"))
"""Paths that are answered on connections over the limit."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Settings of the same names; docs/reference/settings.md has the reasons.

    max_guests: connections over the limits that are open at once. trusted: networks whose
    connections do not count by address.
    """

    head_seconds: float = 10.0
    idle_seconds: float = 75.0
    body_seconds: float = 30.0
    reader_seconds: float = 60.0
    max_connections: int = 1024
    max_guests: int = 128
    max_connections_per_address: int = 0
    trusted: Sequence[Network] = ()

    def seconds(self, kind: str) -> float:
        """How long a connection may wait for something from its client."""
        match kind:
            case "head":
                return self.head_seconds
            case "body" | "rest":
                return self.body_seconds
            case "linger":
                return min(_LINGER_SECONDS, self.idle_seconds)
            case _:  # it holds no more than a connection without a request
                return self.idle_seconds

    @property
    def sweep_seconds(self) -> float:
        """Time between two looks at all connections."""
        shortest = (self.head_seconds, self.idle_seconds, self.body_seconds, self.reader_seconds)
        return min(_SWEEP_SECONDS, min(shortest) / 4)


@dataclass(slots=True)
class Wait:
    """What a connection waits for, as of the last look, and since when.

    unsent, unread: bytes of responses in this process, and in the system, that the client has not
    taken; stuck_since: when one of them last fell.
    """

    since: float
    kind: str = "head"
    progress: int = 0
    stuck_since: float | None = None
    unsent: int = 0
    unread: int = 0


@dataclass(slots=True, eq=False)
class Connections:
    """The open connections: whether one more is accepted, and which have waited for too long.

    refusing: makes the application that answers with a refusal. count: called with the reason of
    each refusal.
    """

    limits: Limits
    refusing: Callable[[Refusal], ASGIApp]
    count: Callable[[str], None]
    _open: dict[Http1, Wait] = field(default_factory=dict)
    _guests: dict[Http1, str] = field(default_factory=dict)
    """Connections over the limits, the oldest first, with the reason."""
    _addresses: Counter[str] = field(default_factory=Counter)
    _idle: list[Http1] = field(default_factory=list)
    """Connections that may be closed in favour of others, the one that waits longest last."""
    _reasons: Counter[str] = field(default_factory=Counter)
    """What was refused since the last line of the log."""
    _sweeping: asyncio.TimerHandle | None = None
    _most: int = 0
    """Open connections at most since free memory was given back."""

    def __len__(self) -> int:
        return len(self._open)

    # Coming and going

    def enter(self, connection: Http1) -> None:
        """Takes a new connection; over a limit as a guest that may only ask for the health."""
        limits, loop = self.limits, connection.loop
        address = self._address(connection)
        if address is not None and self._addresses[address] >= limits.max_connections_per_address:
            self._invite(connection, "address")
        elif len(self._open) - len(self._guests) >= limits.max_connections and not self._evict():
            self._invite(connection, "connections")
        self._open[connection] = Wait(loop.time())
        if address is not None:
            self._addresses[address] += 1
        if self._sweeping is None:
            self._sweeping = loop.call_later(limits.sweep_seconds, self._sweep, loop)

    def leave(self, connection: Http1) -> None:
        """Forgets a connection."""
        if self._open.pop(connection, None) is None:
            return
        self._guests.pop(connection, None)
        address = self._address(connection)
        if address is not None:
            self._addresses[address] -= 1
            if not self._addresses[address]:
                del self._addresses[address]

    def overload(self, connection: Http1, path: str) -> Refusal | None:
        """Why a connection's request is refused; None if it is not."""
        reason = self._guests.get(connection)
        if reason is None or path in HEALTH:
            return None
        self.report(reason)
        limit = "max_connections_per_address" if reason == "address" else "max_connections"
        message = f"too many connections, over the limit {limit}, {getattr(self.limits, limit)}"
        return Refusal(503, message, "overloaded", (("retry-after", "1"),))

    def is_guest(self, connection: Http1) -> bool:
        """Whether the connection is over a limit."""
        return connection in self._guests

    def report(self, reason: str) -> None:
        """Counts what is refused; the log gets one line for each look."""
        self.count(reason)
        self._reasons[reason] += 1

    def _invite(self, connection: Http1, reason: str) -> None:
        """A guest leaves for it when there are too many: the oldest that is not being answered."""
        if len(self._guests) >= self.limits.max_guests:
            waiting = (guest for guest in self._guests if guest.waits()[0])
            last = next(waiting, connection)
            self.report(self._guests.get(last, reason))
            self.leave(last)
            if last.transport.get_write_buffer_size():  # `close` would wait until they are read
                last.transport.abort()
            last.transport.close()
        self._guests[connection] = reason

    def _evict(self) -> bool:
        """Closes the connection that has waited longest for a request, if there is one.

        What has arrived since the look, or is not sent yet, keeps a connection.
        """
        while self._idle:
            connection = self._idle.pop()
            if connection not in self._open or not _replaceable(connection):
                continue
            if not has_unread(connection.transport.get_extra_info("socket").fileno()):
                self.report("replaced")
                self.leave(connection)
                connection.transport.close()
                return True
        return False

    def _address(self, connection: Http1) -> str | None:
        """What a connection counts for; None if it does not count. A network of IPv6 is one."""
        if not self.limits.max_connections_per_address or connection.client is None:
            return None
        address = ipaddress.ip_address(connection.client[0].partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address):
            address = address.ipv4_mapped or address
        if any(address in network for network in self.limits.trusted):
            return None
        if isinstance(address, ipaddress.IPv4Address):
            return str(address)
        return str(ipaddress.ip_network((address, 64), strict=False))

    # Time-outs

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ends connections that have waited for too long, and looks again later."""
        now = loop.time()
        for connection, wait in list(self._open.items()):
            self._check(connection, wait, now)
        self._log()
        self._trim(loop)
        self._idle.clear()
        if 2 * len(self._open) > self.limits.max_connections:
            waiting = [
                (wait.since, connection)
                for connection, wait in self._open.items()
                if connection not in self._guests and _replaceable(connection)
            ]
            waiting.sort(key=lambda each: each[0], reverse=True)
            self._idle += [connection for _, connection in waiting]
        self._sweeping = None
        if self._open or self._reasons or self._most:
            self._sweeping = loop.call_later(self.limits.sweep_seconds, self._sweep, loop)

    def _check(self, connection: Http1, wait: Wait, now: float) -> None:
        if self._is_stuck(connection, wait, now):
            self.report("reader_timeout")
            connection.transport.abort()
        if connection.transport.is_closing():
            return
        kind, progress = connection.waits()
        if kind != wait.kind or progress != wait.progress:
            wait.kind, wait.progress, wait.since = kind, progress, now
            return
        seconds = self.limits.seconds(kind)
        if connection in self._guests:
            seconds = min(seconds, _GUEST_SECONDS)
        if kind and now - wait.since >= seconds:
            connection.time_out(kind)

    def _is_stuck(self, connection: Http1, wait: Wait, now: float) -> bool:
        """Whether bytes have waited for the client, and it has taken none, for too long."""
        unsent = connection.transport.get_write_buffer_size()
        if not unsent:
            wait.stuck_since = None
            return False
        unread = _unread_bytes(connection.transport)
        moved = unsent < wait.unsent or unread < wait.unread
        if wait.stuck_since is None or moved:
            wait.stuck_since = now
        wait.unsent, wait.unread = unsent, unread
        return now - wait.stuck_since >= self.limits.reader_seconds

    def _trim(self, loop: asyncio.AbstractEventLoop) -> None:
        """Gives free memory back to the system after a crowd, of which glibc keeps much."""
        self._most = max(self._most, len(self._open))
        if self._most - len(self._open) >= _CROWD:
            self._most = len(self._open)
            loop.run_in_executor(None, trim)

    def _log(self) -> None:
        if self._reasons:
            reasons = " ".join(f"{reason}={number}" for reason, number in self._reasons.items())
            limit = self.limits.max_connections
            full = self._reasons.keys() & {"address", "connections", "replaced"}
            _log.log(
                logging.WARNING if full else logging.INFO,
                "connections refused or ended %s open=%d max_connections=%d",
                *(reasons, len(self._open), limit),
            )
            self._reasons.clear()


def _replaceable(connection: Http1) -> bool:
    """Whether a connection holds no part of a request or of its answer."""
    transport = connection.transport
    unused = connection.is_unused() and not transport.is_closing()
    return unused and not transport.get_write_buffer_size()


def _unread_bytes(transport: asyncio.Transport) -> int:
    """Bytes in the system's buffer which the client's system has not acknowledged."""
    with suppress(ImportError, OSError, AttributeError, ValueError):
        import fcntl
        import termios

        number = bytearray(4)
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, number)
        return int.from_bytes(number, "little")
    return 0
