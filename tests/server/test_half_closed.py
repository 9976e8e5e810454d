"""Clients that close their sending side, or all of a connection, while they wait for answers."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from app.server import half_closed as protocol
from tests.api.conftest import PATIENCE_SECONDS, Server, eventually
from tests.server.raw import connect, rest

BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "score": ("/v1/score", {"input": "a cat"}),
    "texts": ("/v1/score", {"input": ["a cat", "a dog"]}),
    "bulk": ("/v1/score/stream", {"input": "a cat"}),
    "rescore": ("/v1/rescore", {"utterances": [{"hypotheses": ["a cat", "a dog"]}]}),
    "next": ("/v1/next", {"input": "a"}),
    "candidates": ("/v1/next", {"input": "a", "candidates": [" cat", " dog"]}),
    "completion": ("/v1/completions", {"prompt": "a", "max_tokens": 20, "ignore_eos": True}),
    "scored": (
        "/v1/completions",
        {"prompt": "a cat", "max_tokens": 0, "echo": True, "logprobs": 0},
    ),
}
STREAM = ("/v1/completions", {"prompt": "a", "max_tokens": 20, "ignore_eos": True, "stream": True})
OTHERS = {"stream": STREAM, "tokenize": ("/v1/tokenize", {"prompt": "a"})}


def request(path: str, body: dict[str, Any]) -> bytes:
    """A whole request."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def asked(server: Server, *sent: bytes) -> bytes:
    """What comes back where the sending side is closed behind the last byte."""
    with connect(server, *sent) as connection:
        connection.shutdown(socket.SHUT_WR)
        return rest(connection)


@contextmanager
def held(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Keeps the engine from running batches until the event is set, at the block's end at last."""
    released = threading.Event()
    runner = server.model.engine.runner
    run = runner.run

    def gated(batch: Any) -> Any:
        released.wait(2 * PATIENCE_SECONDS)  # longer than a test waits for what should happen
        return run(batch)

    with monkeypatch.context() as patches:
        patches.setattr(runner, "run", gated)
        try:
            yield released
        finally:
            released.set()
            eventually(lambda: not server.model.engine.waiting, "no work with the engine")


def waits(server: Server) -> bool:
    """Whether the engine has work that is not dropped."""
    return server.model.engine.due > 0


@pytest.mark.parametrize("name", BODIES | OTHERS)
def test_a_client_that_closes_its_sending_side_gets_its_answer(
    server: Server, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path, body = (BODIES | OTHERS)[name]
    answer = asked(server, request(path, body))
    head, _, content = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    if b"transfer-encoding: chunked" in head:
        assert content.endswith(b"\r\n0\r\n\r\n")
    else:
        json.loads(content)
    server.assert_alive()
    assert not caplog.records


@pytest.mark.parametrize("name", BODIES)
def test_probes_change_no_byte_of_the_answer(
    server: Server, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "_GRACE_SECONDS", 0.0)
    path, body = BODIES[name]
    with held(server, monkeypatch) as released, connect(server, request(path, body)) as connection:
        eventually(lambda: waits(server), "work")
        connection.shutdown(socket.SHUT_WR)
        begun = connection.recv(4)
        assert begun
        assert b"HTTP/1.1 ".startswith(begun)
        released.set()
        assert (begun + rest(connection)).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("abruptly", [False, True])
@pytest.mark.parametrize("name", BODIES)
def test_work_is_dropped_while_it_waits_for_the_engine(
    server: Server, name: str, abruptly: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, body = BODIES[name]
    with held(server, monkeypatch):
        connections = [connect(server, request(path, body)) for _ in range(5)]
        eventually(lambda: waits(server), "work")
        for connection in connections:
            if abruptly:
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            connection.close()
        eventually(lambda: not waits(server), "work that is dropped")
    server.assert_alive()


def test_a_client_that_leaves_after_closing_its_sending_side_is_noticed(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "_GRACE_SECONDS", 0.0)
    with held(server, monkeypatch):
        connection = connect(server, request("/v1/score", {"input": "a cat"}))
        eventually(lambda: waits(server), "work")
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b"H"
        assert waits(server)
        connection.close()
        eventually(lambda: not waits(server), "work that is dropped")


def test_every_request_of_a_packet_is_answered(server: Server) -> None:
    sent = [request(*BODIES[name]) for name in ("score", "completion", "next", "texts")]
    assert asked(server, *sent).count(b"HTTP/1.1 200 OK\r\n") == 4


def test_a_slow_answer_after_many_quick_ones_is_whole(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "_GRACE_SECONDS", 0.01)
    quick = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    slow = request("/v1/score", {"input": "a cat"})
    with (
        held(server, monkeypatch) as released,
        connect(server, *[quick] * 20, slow) as connection,
    ):
        connection.shutdown(socket.SHUT_WR)
        eventually(lambda: waits(server), "work")
        time.sleep(0.3)  # for several probes of each of the requests, if there were any
        released.set()
        assert rest(connection).count(b"HTTP/1.1 200 OK\r\n") == 21


@pytest.mark.parametrize("cut", [-1, 60, 20, 0])
def test_an_unfinished_request_ends_the_connection(server: Server, cut: int) -> None:
    whole = request("/v1/score", {"input": "a cat"})
    assert asked(server, whole[:cut]) == b""
    answer = asked(server, whole, whole[:cut])
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_client_that_leaves_with_another_request_sent_is_noticed(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = request("/v1/score", {"input": ["a cat", "a dog"]})
    with held(server, monkeypatch):
        connection = connect(server, whole, whole)
        eventually(lambda: waits(server), "work")
        connection.close()
        eventually(lambda: not waits(server), "work that is dropped")
    server.assert_alive()


def test_a_client_that_leaves_after_sending_another_request_later_is_noticed(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = request("/v1/score", {"input": ["a cat", "a dog"]})
    with held(server, monkeypatch):
        connection = connect(server, whole)
        eventually(lambda: waits(server), "work")
        for _ in range(2):
            time.sleep(0.2)  # the first is watched by then
            connection.sendall(whole)
        time.sleep(0.2)
        connection.close()
        eventually(lambda: not waits(server), "work that is dropped")
    server.assert_alive()
