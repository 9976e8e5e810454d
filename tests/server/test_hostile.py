"""A small, fixed part of `make bench-hostile`: clients that mean harm get an answer of the API's
shape or a closed connection, and the server answers rightly afterwards."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import httpx
import pytest

from tests.api.conftest import PATIENCE_SECONDS, Server, eventually
from tests.bench.hostile import crowds, mutations, protocols
from tests.bench.hostile.dear_bodies import BODIES, framed
from tests.bench.hostile.target import Target, attacked
from tests.bench.hostile.wire import Received, Tally, exchange, get, post

MUTATIONS, SEED = 300, 29
CHEAP = [
    "16 MB of opening brackets",
    "a byte order mark",
    "a byte too many",
    "a line without an end",
    "bytes of zero",
    "digits of an exponent",
    "invalid UTF-8 at the end",
    "lists 100,000 deep",
    "lone surrogates",
    "objects 100,000 deep",
    "white space alone",
]
KINDS = {kind.name: kind for kind in BODIES}


class Faults(logging.Handler):
    """Keeps what is logged with a traceback."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(record.getMessage())


@pytest.fixture
def unharmed(server: Server) -> Iterator[int]:
    """The port of a server that logs no traceback, and whose scores stay the same."""
    loggers = [logging.getLogger(), logging.getLogger("uvicorn.error")]
    faults, body = Faults(), {"input": ["a cat", "naïve"]}
    before = server.ask("/v1/score", **body)["data"]
    for logger in loggers:
        logger.addHandler(faults)
    try:
        port = urlparse(server.url).port
        assert port is not None
        yield port
        server.assert_alive()
        assert server.ask("/v1/score", **body)["data"] == before
    finally:
        for logger in loggers:
            logger.removeHandler(faults)
    assert faults.found == []


def assert_harmless(tally: Tally) -> None:
    """No fault of the server, no client without an end, no malformed answer."""
    assert tally.faults == {}
    assert (tally.server_errors, tally.hangs) == (0, 0)


def status(received: Received) -> int:
    """The status of the only answer."""
    (answer,) = received.answers()
    assert answer.fault is None
    return answer.status


def test_mutations_of_requests_are_answered_or_cut_off(unharmed: int) -> None:
    assert_harmless(asyncio.run(mutations.send(unharmed, MUTATIONS, SEED)))


def test_valid_requests_are_right_as_they_are(unharmed: int) -> None:
    for raw in mutations.valid():
        received = asyncio.run(exchange(unharmed, [raw]))
        assert status(received) in (200, 404)


@pytest.mark.parametrize("name", CHEAP)
def test_a_hostile_body_is_refused(unharmed: int, name: str) -> None:
    tally = Tally()
    received = asyncio.run(exchange(unharmed, [KINDS[name].request()]))
    (answer,) = tally.add(name, received)
    assert_harmless(tally)
    bulk = KINDS[name].path == "/v1/score/stream"  # a wrong line is told so in a right answer
    assert answer.status in ((200,) if bulk else (400, 413))


def test_bodies_of_wrong_lengths_end_the_connection_or_are_refused(unharmed: int) -> None:
    tally = Tally()
    for name, parts in framed().items():
        if "chunks of one byte" not in name:  # dear to take
            tally.add(name, asyncio.run(exchange(unharmed, parts)))
    assert_harmless(tally)


def test_no_request_is_smuggled_within_another(unharmed: int) -> None:
    tally = asyncio.run(protocols.send_odd(unharmed, PATIENCE_SECONDS, times=1))
    assert_harmless(tally)
    assert tally.notes == []


def test_requests_that_are_cut_off_and_half_closed_end_the_connection(unharmed: int) -> None:
    tally = Tally()
    for raw in mutations.valid()[::5]:
        for cut in range(0, len(raw), 60):
            tally.add("cut off", asyncio.run(exchange(unharmed, [raw[:cut]])))
    assert_harmless(tally)


def test_connections_may_be_reset_anywhere(unharmed: int) -> None:
    assert_harmless(asyncio.run(protocols.send_resets(unharmed, 100, SEED)))


@pytest.mark.parametrize("raw", [get("/livez"), post("/v1/score", b"{"), get("/nowhere")])
def test_each_request_of_a_flood_is_answered(unharmed: int, raw: bytes) -> None:
    received = asyncio.run(exchange(unharmed, [raw * 500]))
    answers = list(received.answers())
    assert [answer.fault for answer in answers] == [None] * 500


def test_a_request_that_goes_wrong_within_its_answer_cuts_it_off(unharmed: int) -> None:
    """The refusal of the rest must not be written into an answer that has begun."""
    line = b'{"input": "a cat"}\n'
    head = (
        b"POST /v1/score/stream HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", unharmed), PATIENCE_SECONDS) as connection:
        connection.sendall(head + b"%x\r\n%b\r\n" % (len(line), line))
        found = b""
        while b"fluency" not in found:
            found += connection.recv(1 << 16)
        connection.sendall(b"no chunk\r\n")
        while part := connection.recv(1 << 16):
            found += part
    assert found.startswith(b"HTTP/1.1 200 OK\r\n")
    assert found.count(b"HTTP/1.1") == 1


# What follows needs bounds on connections and values; the server is a process of its own.

BOUNDS = {
    "head_seconds": 1,
    "body_seconds": 1,
    "reader_seconds": 2,
    "idle_seconds": 1,
    "max_connections": 40,
    "threads": 1,
    "log_level": "info",
}
STAY_SECONDS = 15.0
"""How long slow clients stay: far above the bounds, so that who is still there was let stay."""


@pytest.fixture(scope="module")
def bounded(tiny_folder: Path) -> Iterator[Target]:
    """A server whose bounds on connections are soon reached."""
    with attacked(0, None, tiny_folder, **BOUNDS) as target:
        yield target
        assert target.recover(PATIENCE_SECONDS) is not None
        assert target.logged(0)[0] == 0, target.log.read_text()


@pytest.mark.parametrize("crowd", [crowds.slow_heads, crowds.missing_bodies, crowds.silent])
def test_slow_clients_are_sent_away(bounded: Target, crowd: crowds.Crowd) -> None:
    tally = asyncio.run(crowd(bounded.port, 20, STAY_SECONDS))
    assert_harmless(tally)
    assert set(tally.outcomes) <= {"200", "408", "closed", "reset"}


def test_clients_that_read_nothing_are_sent_away(bounded: Target) -> None:
    before = bounded.descriptors()
    crowd = [socket.socket() for _ in range(5)]
    try:
        for number, connection in enumerate(crowd):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", bounded.port))
            connection.sendall(crowds.unread(number))
        eventually(lambda: bounded.descriptors() >= before + 5, "accepted connections")
        eventually(lambda: bounded.descriptors() <= before, "closed connections")
    finally:
        for connection in crowd:
            connection.close()


CHEAP_ENDLESS = {"endless extensions", "endless empty lines"}
"""Legal however long: the body is small, and the lines are skipped."""


@pytest.mark.parametrize("name", sorted({*crowds.endless()} - CHEAP_ENDLESS))
def test_an_endless_head_is_refused_early(bounded: Target, name: str) -> None:
    received = asyncio.run(exchange(bounded.port, crowds.endless()[name]))
    assert received.sent < crowds.ENDLESS_BYTES / 2  # the kernel's buffers hold some megabytes
    assert status(received) in (400, 408, 413, 414, 431)


@pytest.mark.parametrize("name", ["no Host", "two Hosts"])
def test_a_request_has_one_host(bounded: Target, name: str) -> None:
    assert status(asyncio.run(exchange(bounded.port, [protocols.odd()[name]]))) == 400


def test_millions_of_ignored_fields_are_refused(bounded: Target) -> None:
    request = KINDS["unknown fields, ignored"].request()
    assert status(asyncio.run(exchange(bounded.port, [request]))) == 413


def test_health_answers_while_others_hold_all_connections(bounded: Target) -> None:
    address = ("127.0.0.1", bounded.port)
    crowd = [socket.create_connection(address, PATIENCE_SECONDS) for _ in range(60)]
    try:
        with httpx.Client(
            base_url=bounded.url, timeout=PATIENCE_SECONDS, trust_env=False
        ) as client:
            eventually(lambda: client.get("/livez").status_code == 200, "an answer of /livez")
        eventually(lambda: "max_connections" in bounded.log.read_text(), "the limit in the log")
    finally:
        for connection in crowd:
            connection.close()
