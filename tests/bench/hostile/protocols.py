"""Violations of HTTP: floods, half-closed and reset connections, other protocols, smuggling."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Iterable

from tests.bench.hostile.mutations import valid
from tests.bench.hostile.wire import Part, Tally, connected, exchange, get, post

_INNER = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
_SCORE = b'{"input": "a cat"}'
_START = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\n"
_CHUNKS = b"12\r\n" + _SCORE + b"\r\n0\r\n\r\n"
_AT_ONCE = 40


def _framed(*lines: bytes) -> bytes:
    return _START + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def smuggling() -> dict[str, bytes]:
    """Requests whose end two readers find in different places, with another one inside."""
    chunked, length = b"Transfer-Encoding: chunked", b"Content-Length: %d" % (len(_INNER) + 5)
    inside = b"0\r\n\r\n" + _INNER
    return {
        "a length and chunks": _framed(length, chunked) + inside,
        "chunks and a length": _framed(chunked, length) + inside,
        "two lengths": _framed(b"Content-Length: 0", length) + inside,
        "the same length twice": _framed(b"Content-Length: 18", b"Content-Length: 18") + _SCORE,
        "chunked, then identity": _framed(chunked + b", identity", length) + inside,
        "chunked twice": _framed(chunked, chunked) + _CHUNKS,
        "xchunked": _framed(b"Transfer-Encoding: xchunked", length) + inside,
        "chunked after a tab": _framed(b"Transfer-Encoding:\tchunked", length) + inside,
        "chunked with a form feed": _framed(b"Transfer-Encoding: \x0cchunked", length) + inside,
        "a folded header": _framed(b"Transfer-Encoding:", b" chunked", length) + inside,
        "a folded line": _framed(b"X-A: b", b" c", b"Content-Length: 18") + _SCORE,
        "a space before the colon": _framed(b"Transfer-Encoding : chunked", length) + inside,
        "a name of two words": _framed(b"Content Length: 5", length) + inside,
        "no colon": _framed(b"Transfer-Encoding chunked", length) + inside,
        "a zero byte in a header": _framed(b"X-A: \0", length) + inside,
        "a bare CR": _framed(b"X-A: b\rTransfer-Encoding: chunked", length) + inside,
        "bare LF": _framed(length).replace(b"\r\n", b"\n") + inside,
        "bare LF in chunks": _framed(chunked) + _CHUNKS.replace(b"\r\n", b"\n") + _INNER,
        "a long extension": _framed(chunked) + b"12;" + b"a" * 9000 + b"\r\n" + _SCORE + b"\r\n",
        "an LF in an extension": _framed(chunked) + b"2;\nxx\r\n{}\r\n0\r\n\r\n" + _INNER,
        "a length of 2^64 of a chunk": _framed(chunked) + b"1" + b"0" * 16 + b"\r\n" + _SCORE,
        "a negative length of a chunk": _framed(chunked) + b"-1\r\n" + _SCORE,
        "a length 0x12 of a chunk": _framed(chunked) + b"0x12\r\n" + _SCORE,
        "a chunk without its end": _framed(chunked) + b"12\r\n" + _SCORE + b"0\r\n\r\n" + _INNER,
        "a length in a trailer": _framed(chunked)
        + _CHUNKS[:-2]
        + b"Content-Length: 9\r\n\r\n"
        + _INNER,
        "a body of a GET": b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"
        + length
        + b"\r\n\r\n"
        + inside,
        "chunks in HTTP/1.0": _framed(chunked).replace(b"1.1", b"1.0") + _CHUNKS,
    }


def odd() -> dict[str, bytes]:
    """Heads that are wrong or rare, and other protocols."""
    hello = bytes.fromhex("160301020001000 1fc0303".replace(" ", "")) + bytes(range(256)) * 2
    line, host = b"GET /livez HTTP/1.1\r\n", b"Host: localhost\r\n\r\n"
    return {
        "no Host": line + b"\r\n",
        "two Hosts": line + b"Host: localhost\r\nHost: localhost\r\n\r\n",
        "an empty Host": line + b"Host:\r\n\r\n",
        "a Host of 60 KB": line + b"Host: " + b"a" * 60_000 + b"\r\n\r\n",
        "TLS": hello,
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
        "HTTP/2.0": b"GET /livez HTTP/2.0\r\nHost: localhost\r\n\r\n",
        "HTTP/1.9": b"GET /livez HTTP/1.9\r\nHost: localhost\r\n\r\n",
        "HTTP/0.9": b"GET /livez\r\n",
        "no version": b"GET /livez\r\nHost: localhost\r\n\r\n",
        "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
        "SOCKS": b"\x05\x01\x00",
        "Redis": b"*1\r\n$4\r\nPING\r\n",
        "bytes of zero": bytes(10_000),
        "random bytes": random.Random(0).randbytes(10_000),
        "a method in small letters": b"get /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "an unknown method": b"BREW /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "CONNECT": b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "TRACE": b"TRACE /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "OPTIONS *": b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "an absolute URL": b"GET http://localhost/livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "a URL of another host": line.replace(b"/", b"http://evil.example/", 1) + host,
        "a wrong port in a URL": b"GET http://a:99999/livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "a URL that is not ASCII": "GET /livéz HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(),
        "a URL of escapes": b"GET /%00%ff%zz/..%2f.. HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "an unfinished URL": b"GET /v1/models/%f HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "a query of bytes": b"GET /v1/models?a=%ff%00 HTTP/1.1\r\n" + host,
        "an unknown expectation": get("/livez", "Expect: magic"),
        "a gzip body": post("/v1/score", bytes(100), "Content-Encoding: gzip"),
        "1,000 headers": get("/livez", *(f"X-{n}: a" for n in range(1000))),
        "a strange request id": get("/livez", "X-Request-Id: " + "\x7f" * 200),
    }  # fmt: skip


def floods() -> dict[str, bytes]:
    """Many requests on one connection at a time."""
    return {
        "10,000 probes in one write": get("/livez") * 10_000,
        "1,000 scores in one write": post("/v1/score", _SCORE) * 1000,
        "1,000 schemas in one write": get("/openapi.json") * 1000,
        "5,000 refusals in one write": get("/nowhere") * 5000,
        "2,000 wrong bodies in one write": post("/v1/score", b"{") * 2000,
    }


async def send_odd(port: int, patience: float, times: int = 20) -> Tally:
    """Each shape alone, then so many of each; notes what was smuggled through."""
    tally = Tally()

    async def one(name: str, raw: bytes) -> None:
        received = await exchange(port, [raw], patience=patience)
        answers = tally.add(name, received)
        # one answer to the outer request is right, and one that says that it is none
        if name in shapes and sum(answer.status != 400 for answer in answers) > 1:
            tally.notes.append(f"{name}: {[answer.status for answer in answers]}")

    shapes = smuggling()
    cases = [*shapes.items(), *odd().items()]
    for name, raw in cases:
        await one(name, raw)
    for case in cases:
        await asyncio.gather(*[one(*case) for _ in range(times)])
    tally.notes = sorted(set(tally.notes))
    return tally


async def send_floods(port: int, patience: float) -> Tally:
    """Each flood read, all at once, and all at once by clients who read nothing for a while."""
    tally = Tally()

    async def one(name: str, raw: bytes) -> None:
        tally.add(name, await exchange(port, [raw], patience=patience))

    for name, raw in floods().items():
        await one(name, raw)
    await asyncio.gather(*(one(f"{name}, at once", raw) for name, raw in floods().items()))

    async def unread(raw: bytes) -> None:
        connection = await connected(port, 4096)
        with connection:
            loop = asyncio.get_running_loop()
            try:
                async with asyncio.timeout(min(10.0, patience)):
                    await loop.sock_sendall(connection, raw)
                    await asyncio.sleep(5.0)
            except (OSError, TimeoutError):
                pass
        tally.sent += 1
        tally.outcomes["left"] += 1

    await asyncio.gather(*(unread(raw) for raw in floods().values() for _ in range(5)))
    return tally


async def send_half_closed(port: int, patience: float) -> Tally:
    """Every valid request and its first parts, after which the sending side is closed."""
    tally = Tally()

    async def one(raw: bytes) -> None:
        tally.add("a half-closed request", await exchange(port, [raw], patience=patience))

    for raw in valid():
        cuts = {len(raw), len(raw) - 1, *range(0, len(raw), 40)}
        await asyncio.gather(*(one(raw[:cut]) for cut in cuts))
    return tally


async def send_resets(port: int, count: int, seed: int) -> Tally:
    """Requests whose clients reset the connection: within the request or within the answer."""
    tally, rng = Tally(), random.Random(seed)
    linger = struct.pack("ii", 1, 0)

    async def one() -> None:
        raw = rng.choice(valid())
        if rng.random() < 0.5:
            raw = raw[: rng.randrange(1, len(raw))]
        loop = asyncio.get_running_loop()
        with await connected(port) as connection:
            await loop.sock_sendall(connection, raw)
            await asyncio.sleep(rng.choice((0.0, 0.0, 0.002, 0.01, 0.05)))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        tally.sent += 1
        tally.outcomes["left"] += 1

    for start in range(0, count, _AT_ONCE):
        await asyncio.gather(*[one() for _ in range(min(_AT_ONCE, count - start))])
    return tally


async def send_expectations(port: int, count: int, seconds: float) -> Tally:
    """Clients who wait for `100 Continue`: who then send nothing, at once, or without end."""
    tally = Tally()
    start = _START + b"Expect: 100-continue\r\nContent-Length: 18\r\n\r\n"
    again = _START + b"Expect: 100-continue, 100-continue\r\nContent-Length: 18\r\n\r\n"
    large = _START + b"Expect: 100-continue\r\nContent-Length: 100000000\r\n\r\n"
    cases: list[tuple[str, Iterable[Part], bool]] = [
        ("a body after a while", [start, 0.2, _SCORE], True),
        ("a body at once", [start + _SCORE], True),
        ("two expectations", [again, _SCORE], True),
        ("no body", [start], False),
        ("a body that is too large", [large], False),
    ]

    async def one(number: int) -> None:
        name, parts, ends = cases[number % len(cases)]
        received = await exchange(port, parts, patience=seconds, half_close=ends)
        tally.add(name, received, may_wait=not ends)

    await asyncio.gather(*map(one, range(count)))
    held = tally.outcomes["open"]
    tally.hangs += held
    tally.notes.append(f"{held} still open after {seconds:.0f} s")
    return tally
