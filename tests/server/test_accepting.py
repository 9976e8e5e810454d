"""Newcomers while the event loop is busy, and signals."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import time
from contextlib import closing
from typing import Any

import pytest
import uvicorn
import uvloop

from app.server import uvicorn_server
from app.server.connections import Connections, Limits
from app.server.http1 import bounded
from app.server.uvicorn_server import Server, Stop

NEWCOMERS = 128


@pytest.fixture
def port() -> int:
    """A port that is free."""
    with closing(socket.socket()) as tried:
        tried.bind(("127.0.0.1", 0))
        number: int = tried.getsockname()[1]
        return number


def test_newcomers_are_accepted_within_few_turns_of_a_busy_loop(port: int) -> None:
    assert uvloop.run(_turns(port)) <= NEWCOMERS // 8


def test_a_server_starts_without_descriptors_to_accept_more_at_a_time(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "dup", fail)
    assert uvloop.run(_turns(port)) >= NEWCOMERS - 1


def test_a_signal_that_is_delivered_twice_counts_once(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(uvicorn_server, "end_process", ended.append)
    server = _server(port, Connections(Limits(), _application_of, _nothing))
    for _ in range(2):
        server.handle_exit(signal.SIGTERM, None)
    assert server.should_exit
    assert not ended
    time.sleep(2 * uvicorn_server._REPEAT_SECONDS)
    server.handle_exit(signal.SIGTERM, None)
    assert ended == [0]


def _server(port: int, connections: Connections) -> Server:
    config = uvicorn.Config(
        _nothing, port=port, log_level="error", lifespan="off", http=bounded(connections)
    )
    return Server(config, Stop(0, 0, _nothing, _nothing, lambda: False))


async def _turns(port: int) -> int:
    """Turns of the event loop until all newcomers are accepted."""
    refused: list[str] = []
    connections = Connections(Limits(), _application_of, refused.append)
    server = _server(port, connections)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    newcomers = [socket.create_connection(("127.0.0.1", port)) for _ in range(NEWCOMERS)]
    turns = 0
    while len(connections) < NEWCOMERS and turns < 2 * NEWCOMERS:
        time.sleep(0.001)  # the loop is busy with something else
        await asyncio.sleep(0)
        turns += 1
    for newcomer in newcomers:
        newcomer.close()
    server.should_exit = True
    await serving
    assert not refused
    return turns


def _application_of(refusal: object) -> Any:
    raise AssertionError(refusal)


def _nothing(*_: object) -> None:
    """Does nothing."""
