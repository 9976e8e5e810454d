"""Load that does not wait for the server: requests that are sent at set moments, at little cost.

A busy server shares the cores with its clients, so a client here is a protocol of asyncio without
a task: one that has its answer leaves its connection to the next.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import SplitResult

import numpy as np

HUNG_SECONDS = 60.0
"""A client that waits until it is answered counts as hanging after this time."""
_TICK_SECONDS = 1e-3
_LATE_SECONDS = 0.02
"""Between two looks at clients when none is to be sent."""


@dataclass(slots=True)
class Arrival:
    """A client. moment, sent, ended: seconds after the load began; planned, and measured.

    patience: seconds until it leaves. outcome: the status of its answer, or "gave up", "hung" or
    "disconnected". retry_after: seconds that the answer names.
    """

    moment: float
    request: bytes
    patience: float = HUNG_SECONDS
    sent: float = 0.0
    ended: float = 0.0
    outcome: str = ""
    retry_after: float | None = None

    @property
    def seconds(self) -> float:
        """From the planned moment to the end: a generator that is late makes it longer."""
        return self.ended - self.moment


@dataclass(frozen=True, slots=True)
class Answer:
    """The status of an answer, and the seconds of its Retry-After."""

    status: int
    retry_after: float | None


_Done = Callable[[Answer | None], None]


class Connection(asyncio.Protocol):
    """A connection on which one request at a time is sent.

    The `done` of a request gets its answer, or None if the connection ended before.
    """

    def __init__(self, address: SplitResult) -> None:
        self._host, self._port = address.hostname or "", address.port or 80
        self._transport: asyncio.Transport | None = None
        self._done: _Done | None = None
        self._request, self._received = b"", b""
        self._used = False

    def send(self, request: bytes, done: _Done) -> None:
        """Sends a request, over a new connection if there is none or it has ended."""
        self._request, self._done, self._received = request, done, b""
        if self._transport is None or self._transport.is_closing():
            self._used = False
            opening = asyncio.ensure_future(self._open())
            opening.add_done_callback(self._check_open)
        else:
            self._used = True
            self._transport.write(request)

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        made = await loop.create_connection(lambda: self, self._host, self._port)
        self._transport = made[0]
        if self._done is None:  # the client has left meanwhile
            self._transport.close()
        else:
            self._transport.write(self._request)

    def _check_open(self, opening: asyncio.Task[None]) -> None:
        if not opening.cancelled() and opening.exception() is not None:
            self._end(None)

    def close(self) -> None:
        """Leaves without an answer."""
        self._done = None
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Takes a part of an answer."""
        self._received += data
        head, end, content = self._received.partition(b"\r\n\r\n")
        if not end or self._done is None:
            return
        head = head.lower()
        length = re.search(rb"\r\ncontent-length: *(\d+)", head)
        if length is not None and len(content) >= int(length[1]):
            if b"\r\nconnection: close" in head and self._transport is not None:
                self._transport.close()
            self._end(_answer(head))

    def connection_lost(self, error: Exception | None) -> None:
        """Ends the wait for an answer.

        A server may end an idle connection just as the next request is sent on it; a client then
        sends it once more, over a new one (RFC 9112, section 9.3.1).
        """
        if self._done is not None and self._used and not self._received:
            self._transport = None
            self.send(self._request, self._done)
        else:
            self._end(None)

    def _end(self, answer: Answer | None) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(answer)


def _answer(head: bytes) -> Answer:
    """The answer with this head, in lower case."""
    retry = re.search(rb"\r\nretry-after: *(\d+)", head)
    seconds = float(retry[1]) if retry else None
    return Answer(int(head.split(b" ", 2)[1]), seconds)


class Load:
    """Clients that arrive at their moments, whatever has become of the others."""

    def __init__(self, address: SplitResult) -> None:
        self._address = address
        self._idle: list[Connection] = []
        self._waiting: dict[float, deque[tuple[Arrival, Connection]]] = {}
        """Clients by their patience, in the order in which they leave."""
        self._open = 0
        self._began = time.perf_counter()

    @property
    def now(self) -> float:
        """Seconds since the load began."""
        return time.perf_counter() - self._began

    async def offer(self, arrivals: list[Arrival], seconds: float) -> None:
        """Sends all, which are sorted by their moments; returns when `seconds` are over."""
        self._began = time.perf_counter()
        left = deque(arrivals)
        while left or self.now < seconds:
            now = self.now
            while left and left[0].moment <= now:
                self._begin(left.popleft())
            self._leave(now)
            until = min(left[0].moment if left else seconds, now + _LATE_SECONDS)
            await asyncio.sleep(max(_TICK_SECONDS, until - self.now))

    async def settle(self) -> None:
        """Waits until all clients are answered or have left, and closes the connections."""
        while self._open:
            self._leave(self.now)
            await asyncio.sleep(_LATE_SECONDS)
        for connection in self._idle:
            connection.close()

    def _begin(self, arrival: Arrival) -> None:
        connection = self._idle.pop() if self._idle else Connection(self._address)

        def done(answer: Answer | None) -> None:
            self._open -= 1
            arrival.ended = self.now
            if answer is None:
                arrival.outcome = "disconnected"
            else:
                arrival.outcome, arrival.retry_after = str(answer.status), answer.retry_after
                self._idle.append(connection)

        arrival.sent = self.now
        self._open += 1
        self._waiting.setdefault(arrival.patience, deque()).append((arrival, connection))
        connection.send(arrival.request, done)

    def _leave(self, now: float) -> None:
        """Lets go of those who are answered, and of those whose patience has ended."""
        for patience, waiting in self._waiting.items():
            while waiting and (waiting[0][0].outcome or waiting[0][0].sent + patience <= now):
                arrival, connection = waiting.popleft()
                if not arrival.outcome:
                    connection.close()
                    self._open -= 1
                    arrival.ended = now
                    arrival.outcome = "hung" if patience >= HUNG_SECONDS else "gave up"


async def ask(connection: Connection, request: bytes) -> Answer | None:
    """The answer to a request, or None if the connection ended or the server hangs."""
    answer: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()

    def done(received: Answer | None) -> None:
        if not answer.done():
            answer.set_result(received)

    connection.send(request, done)
    try:
        async with asyncio.timeout(HUNG_SECONDS):
            return await answer
    except TimeoutError:
        connection.close()
        return None


async def closed_loop(
    address: SplitResult, next_request: Callable[[], bytes], clients: int, seconds: float
) -> tuple[int, float]:
    """Requests answered to clients who each send one after the other, and the seconds it took.

    Raises RuntimeError when one is not answered with 200.
    """
    answered = 0
    began = time.perf_counter()

    async def client() -> None:
        nonlocal answered
        connection = Connection(address)
        while time.perf_counter() - began < seconds:
            answer = await ask(connection, next_request())
            if answer is None or answer.status != 200:
                raise RuntimeError(f"a client in a closed loop was answered {answer}")
            answered += 1
        connection.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    return answered, time.perf_counter() - began


def poisson(rng: np.random.Generator, rate: float, seconds: float) -> list[float]:
    """Moments of a Poisson process of so many events a second."""
    number = rng.poisson(rate * seconds)
    return sorted(rng.uniform(0, seconds, number).tolist())


def request(address: SplitResult, path: str, body: dict[str, object], *headers: str) -> bytes:
    """A POST as bytes."""
    content = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", f"Host: {address.netloc}", f"Content-Length: {len(content)}"]
    return "\r\n".join([*lines, *headers]).encode() + b"\r\n\r\n" + content
