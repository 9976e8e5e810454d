"""Clients that are slow, silent or too many."""

from __future__ import annotations

import itertools
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.server.connections import Connections, Limits
from app.server.descriptors import shares
from app.settings import Settings
from tests.api.conftest import PATIENCE_SECONDS, Server, eventually
from tests.server.raw import answered, connect, error_of, limited, parsed, rest
from tests.server.test_half_closed import held, request

LIVE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
CLOSE = LIVE.replace(b"Host", b"Connection: close\r\nHost")
SCORE = request("/v1/score", {"input": "a cat"})
HEAD, BODY = SCORE[: SCORE.index(b"{")], SCORE[SCORE.index(b"{") :]
BULK = b"POST /v1/score/stream HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
LINE = b'11\r\n{"input": "a b"}\n\r\n'
DOCUMENT = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
LARGE = DOCUMENT * 60
"""Answers that are larger than all buffers of the system."""


@pytest.fixture(scope="module")
def hasty(tiny_folder: Path) -> Iterator[Server]:
    """A server that waits only a short time for its clients."""
    times = {"head_seconds": 0.3, "body_seconds": 0.3, "reader_seconds": 0.5, "idle_seconds": 0.9}
    with limited(tiny_folder, **times) as server:
        yield server


@pytest.fixture(scope="module")
def narrow(tiny_folder: Path) -> Iterator[Server]:
    """A server with room for four connections."""
    with limited(tiny_folder, max_connections=4, reader_seconds=0.4) as server:
        server.client.close()  # it would hold one of them
        yield server


def refused(server: Server, reason: str) -> float:
    """How many were refused or ended for a reason."""
    registry = server.app.state.metrics.registry
    labels = {"reason": reason}
    return registry.get_sample_value("convlm_requests_rejected_total", labels) or 0.0


def opened(server: Server) -> int:
    """The open connections."""
    return len(server.app.state.connections)


def scored(connection: socket.socket) -> bool:
    """Whether the next answer on a connection is that to a text."""
    return connection.recv(1 << 16).startswith(b"HTTP/1.1 200 OK\r\n")


# Times


def test_a_silent_connection_is_closed_without_an_answer(hasty: Server) -> None:
    before = refused(hasty, "head_timeout")
    assert answered(hasty) == b""
    assert answered(hasty, b"\r\n" * 10) == b""
    assert refused(hasty, "head_timeout") == before + 2


@pytest.mark.parametrize("earlier", [b"", LIVE])
def test_a_head_that_does_not_come_is_answered(hasty: Server, earlier: bytes) -> None:
    answer = answered(hasty, earlier, LIVE[:-5])
    last = b"HTTP/1.1 " + answer.split(b"HTTP/1.1 ")[-1]
    assert error_of(last) == (408, "request_timeout")
    assert b"head_seconds, 0.3" in last


def test_a_head_may_not_come_byte_by_byte_for_ever(hasty: Server) -> None:
    with connect(hasty, b"GET / HTTP/1.1\r\na: ") as connection:
        connection.settimeout(0.05)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            try:
                assert error_of(connection.recv(1 << 16))[0] == 408
                return
            except TimeoutError:
                connection.sendall(b"a")
    pytest.fail("it was not refused")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_does_not_come_is_answered(hasty: Server, chunked: bool) -> None:
    sent = BULK.replace(b"/stream", b"") + b"5\r\n" + BODY[:3] if chunked else SCORE[:-3]
    answer = answered(hasty, sent)
    assert error_of(answer) == (408, "request_timeout")
    assert b"body_seconds, 0.3" in answer
    hasty.assert_alive()


def test_a_body_may_take_longer_than_the_time_between_its_bytes(hasty: Server) -> None:
    with connect(hasty, HEAD) as connection:
        for byte in BODY:
            time.sleep(0.05)
            connection.sendall(bytes([byte]))
        assert scored(connection)


def test_a_request_that_is_answered_already_may_not_send_on_for_ever(hasty: Server) -> None:
    with connect(hasty, HEAD.replace(b"/v1/score", b"/unknown")) as connection:
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 404")
        assert rest(connection) == b""


def test_a_body_after_its_answer_leaves_the_connection_open(hasty: Server) -> None:
    with connect(hasty, HEAD.replace(b"/v1/score", b"/unknown")) as connection:
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 404")
        connection.sendall(BODY)
        time.sleep(0.6)  # longer than the rest of a body may take, shorter than the idle time
        connection.sendall(SCORE)
        assert scored(connection)


def test_an_idle_connection_is_closed_after_its_time(hasty: Server) -> None:
    with connect(hasty, LIVE) as connection:
        assert scored(connection)
        time.sleep(0.5)  # longer than a head may take
        connection.sendall(LIVE)
        assert scored(connection)
        assert rest(connection) == b""


@pytest.mark.parametrize("sent", [SCORE, SCORE[:-1], BULK + LINE])
def test_the_server_may_take_longer_than_its_clients(
    hasty: Server, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held(hasty, monkeypatch) as released, connect(hasty, sent) as connection:
        if sent == SCORE[:-1]:  # while the next request on the connection is not complete
            connection.sendall(SCORE[-1:] + LIVE[:-1])
        time.sleep(1.5)
        released.set()
        assert scored(connection)


def test_a_client_of_bulk_may_rest_once_its_lines_are_answered(hasty: Server) -> None:
    with connect(hasty, BULK) as connection:
        for _ in range(3):
            connection.sendall(LINE)
            found = b""
            while b"logprob_sum" not in found:
                found += connection.recv(1 << 16)
            time.sleep(0.5)  # longer than a body may rest, shorter than the idle time
        connection.sendall(b"0\r\n\r\n")
        while b'"summary"' not in found:
            found += connection.recv(1 << 16)
    with connect(hasty, BULK, LINE) as connection:
        assert not rest(connection).endswith(b"0\r\n\r\n")
    hasty.assert_alive()


def test_a_client_that_reads_nothing_is_dropped_with_its_work(hasty: Server) -> None:
    before = refused(hasty, "reader_timeout")
    text = request("/v1/score", {"input": "a cat " * 20_000, "top_logprobs": 20})
    stuck = [connect(hasty, sent, receive_bytes=4096) for sent in (LARGE, text)]
    eventually(lambda: refused(hasty, "reader_timeout") == before + 2, "two clients dropped")
    hasty.assert_alive()
    for connection in stuck:
        connection.close()


def test_a_client_that_reads_slowly_gets_everything(hasty: Server) -> None:
    with connect(hasty, LARGE, receive_bytes=1 << 16) as connection:
        found = 0
        for _ in range(30):
            time.sleep(0.05)
            found += len(connection.recv(1 << 15))
        found += len(rest(connection))
    one = len(answered(hasty, CLOSE.replace(b"/livez", b"/openapi.json")))
    assert found > 59 * one


def test_bodies_that_wait_on_one_connection_are_bounded_together(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    length = b"%d" % len(BODY)
    padded = HEAD.replace(length, b"%d" % (len(BODY) + 60_000)) + BODY + b" " * 60_000
    with held(server, monkeypatch) as released, connect(server, SCORE) as connection:
        bounds = server.app.state.connections
        eventually(lambda: any(not each.idle for each in bounds._open), "a request")
        (protocol,) = (each for each in bounds._open if not each.idle)

        def waiting() -> int:
            return sum(len(cycle.body) for cycle, _ in protocol.pipeline)

        connection.sendall(padded * 8)
        eventually(lambda: protocol._held or waiting() > 150_000, "requests that wait")
        assert waiting() < 150_000
        released.set()
        found = b""
        while found.count(b"HTTP/1.1 200 OK") < 9:
            found += connection.recv(1 << 16)


# Numbers


@pytest.fixture
def crowd(narrow: Server) -> Iterator[list[socket.socket]]:
    """Connections that are sending their heads, as many as there is room for."""
    connections = [connect(narrow, LIVE[:-2]) for _ in range(4)]
    eventually(lambda: opened(narrow) == 4, "four connections")
    yield connections
    for connection in connections:
        connection.close()
    eventually(lambda: opened(narrow) == 0, "no connection")


@pytest.mark.usefixtures("crowd")
def test_a_connection_too_many_is_refused(narrow: Server, caplog: pytest.LogCaptureFixture) -> None:
    before = refused(narrow, "connections")
    with caplog.at_level(logging.WARNING):
        for _ in range(20):
            answer = answered(narrow, SCORE)
            assert error_of(answer) == (503, "overloaded")
            assert parsed(answer)[1]["retry-after"] == "1"
            assert b"max_connections, 4" in answer
        eventually(lambda: bool(caplog.messages), "a line in the log")
    assert refused(narrow, "connections") == before + 20
    assert len(caplog.messages) < 20
    assert "connections refused or ended connections=" in caplog.text


def test_the_health_is_answered_over_the_limit(narrow: Server, crowd: list[socket.socket]) -> None:
    before = refused(narrow, "connections")
    for path in (b"/livez", b"/readyz", b"/health", b"/ping"):
        answer = answered(narrow, LIVE.replace(b"/livez", path))  # the connection ends after it
        assert parsed(answer)[0] == 200
    assert refused(narrow, "connections") == before
    for connection in crowd:
        connection.sendall(b"\r\n")
        assert scored(connection)


@pytest.mark.usefixtures("crowd")
def test_a_silent_crowd_over_the_limit_keeps_no_health_check_out(narrow: Server) -> None:
    silent = [connect(narrow) for _ in range(200)]
    assert parsed(answered(narrow, LIVE))[0] == 200
    assert opened(narrow) < 150
    for connection in silent:
        assert rest(connection) == b""
        connection.close()


@pytest.mark.parametrize("sent", [b"", LIVE])
def test_connections_without_a_request_make_room(narrow: Server, sent: bytes) -> None:
    before = refused(narrow, "replaced")
    waiting = [connect(narrow, sent) for _ in range(4)]
    eventually(lambda: opened(narrow) == 4, "four connections")
    others: list[socket.socket] = []

    def is_taken() -> bool:  # those that have just come are not replaced
        others.append(connect(narrow, SCORE))
        return scored(others[-1])

    eventually(is_taken, "a free place")
    assert refused(narrow, "replaced") == before + 1
    for connection in [*waiting, *others]:
        connection.close()
    eventually(lambda: opened(narrow) == 0, "no connection")


def test_a_connection_whose_answer_is_not_read_is_not_forgotten(narrow: Server) -> None:
    """Closing it would wait for its client for ever, and its descriptor would not be counted."""
    stuck = [connect(narrow, receive_bytes=4096) for _ in range(4)]
    eventually(lambda: opened(narrow) == 4, "four connections")
    protocols = list(narrow.app.state.connections._open)
    for connection, protocol in zip(stuck, protocols, strict=True):
        for number in itertools.count(1):
            connection.sendall(DOCUMENT)
            eventually(lambda: protocol.messages == number and protocol.idle, "an answer")  # noqa: B023
            if protocol.transport.get_write_buffer_size():
                break
    others: list[socket.socket] = []

    def is_taken() -> bool:
        others.append(connect(narrow, SCORE))
        return scored(others[-1])

    eventually(is_taken, "a free place")
    sockets = protocols[0].server_state.connections
    for connection in others:
        connection.close()
    eventually(lambda: not sockets, "no socket")
    for connection in stuck:
        connection.close()


def test_a_connection_whose_request_has_arrived_is_not_replaced(narrow: Server) -> None:
    waiting = [connect(narrow, LIVE) for _ in range(4)]
    assert all(scored(connection) for connection in waiting)
    bounds = narrow.app.state.connections
    eventually(lambda: len(bounds._idle) == 4, "connections that may be replaced")
    replaced: list[bool] = []

    def crossing() -> None:  # within one turn of the event loop, which reads nothing meanwhile
        for connection in waiting:
            connection.sendall(LIVE)
        replaced.append(bounds._evict())

    next(iter(bounds._open)).loop.call_soon_threadsafe(crossing)
    assert all(scored(connection) for connection in waiting)
    assert replaced == [False]
    for connection in waiting:
        connection.close()


def test_connections_of_an_address_are_bounded_but_for_proxies(tiny_folder: Path) -> None:
    for trusted, status in (("192.0.2.0/24", 503), ("192.0.2.1,127.0.0.0/8", 200), ("*", 200)):
        with limited(tiny_folder, max_connections_per_address=2, trusted_proxies=trusted) as server:
            server.client.close()
            eventually(lambda: opened(server) == 0, "no connection")
            first = [connect(server, LIVE[:-2]) for _ in range(2)]
            answer = answered(server, CLOSE.replace(b"/livez", b"/version"))
            assert parsed(answer)[0] == status
            for connection in first:
                connection.close()
            eventually(lambda: opened(server) == 0, "no connection")
            assert parsed(answered(server, CLOSE.replace(b"/livez", b"/version")))[0] == 200


def test_an_ipv4_address_written_as_ipv6_is_the_same_address() -> None:
    trusted = Settings(trusted_proxies="10.1.2.3/8").trusted_networks
    limits = Limits(max_connections_per_address=1, trusted=trusted)
    bounds = Connections(limits, pytest.fail, pytest.fail)
    for client, counted in (("::ffff:10.9.9.9", None), ("::ffff:192.0.2.1", "192.0.2.1")):
        assert bounds._address(SimpleNamespace(client=(client, 1))) == counted  # type: ignore[arg-type]


def test_proxies_are_addresses() -> None:
    with pytest.raises(ValueError, match="trusted_proxies"):
        Settings(trusted_proxies="localhost")


@pytest.mark.parametrize("limit", [64, 256, 1024, 4096, 1 << 20])
def test_connections_leave_descriptors_for_everything_else(
    limit: int, caplog: pytest.LogCaptureFixture
) -> None:
    found = shares(limit)
    assert found.connections >= min(limit // 4, 8192)
    assert found.connections + found.guests + found.backlog <= max(limit // 2, limit - 128)
    assert shares(limit, 10).connections == 10
    assert not caplog.records
    assert shares(limit, 1 << 20).connections <= limit
    assert f"only {limit} files" in caplog.text
