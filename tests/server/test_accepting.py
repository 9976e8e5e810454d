"""Newcomers while the event loop is busy."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import closing
from typing import Any

import pytest
import uvicorn
import uvloop

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


async def _turns(port: int) -> int:
    """Turns of the event loop until all newcomers are accepted."""
    refused: list[str] = []
    connections = Connections(Limits(), _application_of, refused.append)
    config = uvicorn.Config(
        _nothing, port=port, log_level="error", lifespan="off", http=bounded(connections)
    )
    server = Server(config, Stop(0, 0, _nothing, _nothing, lambda: False))
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
