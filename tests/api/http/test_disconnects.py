"""A client that leaves takes its work with it."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import Any
from urllib.parse import urlparse

import pytest

from tests import texts
from tests.api.conftest import Server, eventually

LONG = " ".join(texts.ALL) * 40
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "stream": ("/v1/completions", {"prompt": "a", "max_tokens": 16_000, "stream": True, "n": 3}),
    "whole": ("/v1/completions", {"prompt": "a", "max_tokens": 16_000, "n": 3}),
    "echo": (
        "/v1/completions",
        {"prompt": LONG, "max_tokens": 16_000, "echo": True, "logprobs": 0, "stream": True},
    ),
    "score": ("/v1/score", {"input": LONG * 4}),
    "texts": ("/v1/score", {"input": [texts.ALICE] * 1000, "detail": "totals"}),
    "bulk": ("/v1/score/stream", {"input": [texts.ALICE] * 1000, "detail": "totals"}),
    "bulk-long": ("/v1/score/stream", {"input": LONG * 4}),
    "candidates": ("/v1/next", {"input": LONG, "candidates": [LONG] * 4}),
}


def begin(server: Server, name: str) -> socket.socket:
    """Sends a request and reads nothing."""
    path, body = REQUESTS[name]
    content = json.dumps(body).encode()
    url = urlparse(server.url)
    connection = socket.create_connection((url.hostname, url.port), timeout=60)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


def leave(connection: socket.socket, *, abruptly: bool) -> None:
    """Closes a connection, with a reset instead of a farewell if abruptly."""
    if abruptly:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("abruptly", [False, True])
@pytest.mark.parametrize("name", REQUESTS)
def test_a_client_that_leaves_frees_its_work(server: Server, name: str, abruptly: bool) -> None:
    connection = begin(server, name)
    eventually(lambda: server.model.engine.waiting > 0, "work that has begun")
    if name in ("stream", "score", "echo"):
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
    leave(connection, abruptly=abruptly)
    server.assert_alive()
    scheduler = server.model.engine.loops[0].scheduler
    eventually(lambda: scheduler.idle, "an idle scheduler")
    assert len(scheduler.states.free) == server.model.settings.max_open_sequences


@pytest.mark.parametrize("name", REQUESTS)
def test_clients_that_leave_at_once_leave_nothing_behind(server: Server, name: str) -> None:
    for number in range(12):
        leave(begin(server, name), abruptly=number % 2 == 0)
    server.assert_alive()


def test_a_body_that_is_never_finished_is_no_error(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    url = urlparse(server.url)
    for _ in range(5):
        connection = socket.create_connection((url.hostname, url.port), timeout=60)
        head = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
        connection.sendall(head + b'{"input"')
        leave(connection, abruptly=False)
    server.assert_alive()
    assert not caplog.records


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("steps", range(0, 10, 3))
def test_a_client_may_leave_between_any_two_steps(server: Server, name: str, steps: int) -> None:
    """Without a network: the disconnect is seen after a few turns of the event loop."""
    path, body = REQUESTS[name]
    content = json.dumps(body).encode()
    received = 0
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        nonlocal received
        received += 1
        if received == 1:
            return {"type": "http.request", "body": content, "more_body": False}
        for _ in range(steps):
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }

    async def ask() -> None:
        await server.app(scope, receive, send)  # type: ignore[arg-type]
        while server.model.engine.waiting:  # the engine still knows this event loop
            await asyncio.sleep(0.001)

    asyncio.run(ask())
    assert sent[0]["status"] in (200, 499)
    server.assert_alive()


def test_a_reader_who_lags_gets_everything(server: Server) -> None:
    connection = begin(server, "score")
    eventually(lambda: server.model.engine.waiting > 0, "work that has begun")
    other = server.ask("/v1/score", input="others go on")
    assert other["data"]
    answer = bytearray()
    while part := connection.recv(1 << 16):
        answer += part
        if answer.endswith(b"0\r\n\r\n"):
            break
    connection.close()
    assert b'"system_fingerprint"' in answer[-200:]
    server.assert_alive()
