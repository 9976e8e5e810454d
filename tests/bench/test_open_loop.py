"""The load generator, with a server that answers as the path says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import SplitResult, urlsplit

from tests.bench import open_loop
from tests.bench.open_loop import Arrival, Connection, Load, ask, closed_loop

_RIGHT = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
_REFUSED = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\nContent-Length: 2\r\n\r\n{}"


class _Server(asyncio.Protocol):
    """Answers by the path; /once ends the connection after its answer without saying so."""

    def __init__(self, connections: set[asyncio.Transport]) -> None:
        self._connections = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._connections.add(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        path = data.split(b" ", 2)[1]
        if path not in (b"/hangs", b"/ends"):
            self._transport.write(_REFUSED if path == b"/refused" else _RIGHT)
        if path in (b"/once", b"/ends"):
            self._transport.close()


@asynccontextmanager
async def _server() -> AsyncIterator[SplitResult]:
    connections: set[asyncio.Transport] = set()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Server(connections), "127.0.0.1", 0)
    async with server:
        yield urlsplit(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        for transport in connections:
            transport.close()
        while connections:
            await asyncio.sleep(0.001)


def _run(test: Callable[[SplitResult], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        async with _server() as address:
            await test(address)

    asyncio.run(run())


def test_every_client_has_one_outcome() -> None:
    async def test(address: SplitResult) -> None:
        paths = ["/right", "/refused", "/ends", "/hangs"] * 20
        arrivals = [
            Arrival(i / 1000, open_loop.request(address, path, {}), patience=0.3)
            for i, path in enumerate(paths)
        ]
        load = Load(address)
        await load.offer(arrivals, 0.1)
        await load.settle()
        outcomes = [arrival.outcome for arrival in arrivals]
        assert outcomes == ["200", "503", "disconnected", "gave up"] * 20
        assert {a.retry_after for a in arrivals} == {None, 7.0}
        assert all(arrival.ended >= arrival.sent >= arrival.moment for arrival in arrivals)

    _run(test)


def test_a_request_on_a_connection_that_has_ended_is_sent_over_a_new_one() -> None:
    async def test(address: SplitResult) -> None:
        connection = Connection(address)
        for _ in range(3):
            answer = await ask(connection, open_loop.request(address, "/once", {}))
            assert answer is not None
            assert answer.status == 200
        connection.close()

    _run(test)


def test_an_answer_says_when_to_try_again() -> None:
    async def test(address: SplitResult) -> None:
        connection = Connection(address)
        answer = await ask(connection, open_loop.request(address, "/refused", {}))
        assert answer == open_loop.Answer(503, 7.0)
        connection.close()

    _run(test)


def test_a_client_without_a_server_is_disconnected() -> None:
    async def test() -> None:
        address = urlsplit("http://127.0.0.1:1")
        assert await ask(Connection(address), b"") is None

    asyncio.run(test())


def test_a_closed_loop_counts_the_answers() -> None:
    async def test(address: SplitResult) -> None:
        asked = iter(range(10**9))

        def one_more() -> bytes:
            next(asked)
            return open_loop.request(address, "/right", {})

        answered, _ = await closed_loop(address, one_more, clients=3, seconds=0.05)
        assert answered == next(asked)

    _run(test)
