"""Crowds of slow and silent clients, and heads that never end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator

from tests.bench.hostile.wire import Part, Received, Tally, connected, exchange, post
from tests.texts import ALICE

ENDLESS_BYTES = 50_000_000
_DRAIN_SECONDS = 10.0
_RECEIVE_BYTES = 4096
_CLOSE = "Connection: close"
"""So that what the kernel holds of an answer that is complete does not count as held."""
_HEAD = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\n"

Held = Callable[[], int]
"""How many descriptors the server has open."""
Crowd = Callable[[int, int, float], Awaitable[Tally]]
"""A port, how many clients, and how many seconds they stay."""


def _drops(beginning: bytes, unit: bytes, seconds: float) -> Iterator[Part]:
    """A beginning, then one unit after the other without end."""
    yield beginning
    for byte in itertools.cycle(unit):
        yield seconds
        yield bytes([byte])


async def _crowd(
    port: int, name: str, count: int, seconds: float, parts: Callable[[int], Iterable[Part]]
) -> Tally:
    """Clients who stay for so many seconds unless they are sent away; all that stay count."""
    tally = Tally()

    async def one(number: int) -> None:
        await asyncio.sleep(number * 0.002)  # a queue of connections holds some 2,000
        received = await exchange(port, parts(number), patience=seconds, half_close=False)
        tally.add(name, received, may_wait=True)

    await asyncio.gather(*map(one, range(count)))
    held = tally.outcomes["open"]
    tally.hangs += held
    tally.notes.append(f"{held} of {count} still open after {seconds:.0f} s")
    return tally


async def slow_heads(port: int, count: int, seconds: float) -> Tally:
    """A byte of a head in a second; every other one has sent all but the last line."""
    kinds = ((b"", _HEAD + b"X-A: b\r\n"), (_HEAD + b"Content-Length: 20\r\n", b"X-A: b\r\n"))
    return await _crowd(
        port, "a slow head", count, seconds, lambda number: _drops(*kinds[number % 2], 1.0)
    )


_BODIES = (
    (_HEAD + b"Content-Length: 100000\r\n\r\n", b" "),
    (_HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
)


async def slow_bodies(port: int, count: int, seconds: float) -> Tally:
    """A byte of a body in a second; every other one in chunks."""
    return await _crowd(
        port, "a slow body", count, seconds, lambda number: _drops(*_BODIES[number % 2], 1.0)
    )


async def missing_bodies(port: int, count: int, seconds: float) -> Tally:
    """A head and the first bytes of a body, of which no more comes."""
    return await _crowd(
        port, "a missing body", count, seconds, lambda number: [b"".join(_BODIES[number % 2])]
    )


async def silent(port: int, count: int, seconds: float) -> Tally:
    """Connections on which nothing is sent; a tenth of them after one request that is answered."""
    request = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
    tally = await _crowd(
        port, "silence", count, seconds, lambda n: [request] if n % 10 == 0 else []
    )
    tally.notes.append("answered connections that stay open do not count")
    return tally


def unread(number: int) -> bytes:
    """A request with an answer that no buffer holds: a stream, a large score, or lines."""
    if number % 5 < 2:
        body: dict[str, object] = {
            "prompt": "a",
            "max_tokens": 1000,
            "logprobs": 20,
            "stream": True,
        }
        return post("/v1/completions", json.dumps({**body, "ignore_eos": True}).encode(), _CLOSE)
    if number % 5 == 2:
        body = {"input": ALICE * 8, "top_logprobs": 20}
        return post("/v1/score", json.dumps(body).encode(), _CLOSE)
    line = json.dumps({"input": ALICE[:150], "top_logprobs": 20}).encode() + b"\n"
    return post("/v1/score/stream", line * 500, _CLOSE)


async def slow_readers(port: int, count: int, seconds: float, held: Held) -> Tally:
    """Clients who ask for much and read nothing, or every other one a byte in a second.

    What is held is seen from the server's descriptors: what its kernel still sends is not its own.
    """
    tally, before = Tally(), held()
    after: list[int] = []

    async def one(number: int) -> None:
        received = Received()
        try:
            connection = await connected(port, _RECEIVE_BYTES)
        except OSError:
            received.ended = "not connected"
        else:
            with connection:
                await _read_slowly(connection, number, seconds, received, after, held)
        tally.add("a slow reader", received, may_wait=True)

    await asyncio.gather(*map(one, range(count)))
    tally.faults.clear()  # an answer that was not read may be cut off
    open_after = max(0, max(after, default=before) - before)
    tally.hangs += open_after
    tally.notes.append(f"{open_after} of {count} held after {seconds:.0f} s")
    return tally


async def _read_slowly(
    connection: socket.socket,
    number: int,
    seconds: float,
    received: Received,
    after: list[int],
    held: Held,
) -> None:
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_sendall(connection, unread(number))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    await asyncio.sleep(1.0)
                    if number % 2:
                        received.content += await loop.sock_recv(connection, 1)
        after.append(held())
        async with asyncio.timeout(_DRAIN_SECONDS):
            while part := await loop.sock_recv(connection, 1 << 16):
                received.content += part
        received.ended = "closed"
    except TimeoutError:
        pass
    except OSError:
        received.ended = "reset"
    received.size = len(received.content)


def endless() -> dict[str, Iterator[Part]]:
    """Heads, and what else comes before a request is known, of 50 MB."""
    chunked = _HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    kinds = {
        "an endless header": (_HEAD + b"X-A: ", b"a" * 65_536),
        "endless headers": (_HEAD, b"X-A: b\r\n" * 8192),
        "an endless URL": (b"GET /", b"a" * 65_536),
        "an endless query": (b"GET /livez?", b"a=b&" * 16_384),
        "an endless name of a header": (_HEAD, b"a" * 65_536),
        "endless trailers": (chunked + b"2\r\n{}\r\n0\r\n", b"X-A: b\r\n" * 8192),
        "an endless trailer": (chunked + b"2\r\n{}\r\n0\r\nX-A: ", b"a" * 65_536),
        "an endless extension of a chunk": (chunked + b"2;a=", b"a" * 65_536),
        "an endless length of a chunk": (chunked, b"0" * 65_536),
        "endless extensions": (chunked, b"1;a=b;c=d\r\na\r\n" * 8192),
        "endless empty lines": (b"", b"\r\n" * 32_768),
        "an endless method": (b"", b"A" * 65_536),
    }
    return {name: _endlessly(*parts) for name, parts in kinds.items()}


def _endlessly(beginning: bytes, part: bytes) -> Iterator[Part]:
    yield beginning
    for _ in range(ENDLESS_BYTES // len(part)):
        yield part


async def endless_heads(port: int, patience: float) -> Tally:
    """One kind after the other, then all at the same time."""
    tally = Tally()

    async def one(name: str, parts: Iterator[Part]) -> None:
        received = await exchange(port, parts, patience=patience)
        tally.add(name, received)
        if received.sent > 1 << 20:
            megabytes, seconds = received.sent / 1e6, received.seconds
            tally.notes.append(f"{name}: {megabytes:.0f} MB taken in {seconds:.1f} s")

    for name, parts in endless().items():
        await one(name, parts)
    await asyncio.gather(*(one(f"{name} at once", parts) for name, parts in endless().items()))
    return tally
