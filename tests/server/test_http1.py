"""Requests that offer another protocol, as Java's HttpClient does, are taken as they are; HTTP/1.0
is answered in HTTP/1.0's way."""

from __future__ import annotations

import json
import socket
from typing import Any
from urllib.parse import urlparse

import pytest

from tests.api.conftest import PATIENCE_SECONDS, Server

OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
CLOSE = b"Connection: close\r\n"
CLOSE_UPGRADE = b"Connection: close, Upgrade\r\n"
BODY = b'{"input": "a b"}'


def request(path: str, *headers: bytes, chunked: bool = False) -> bytes:
    """A request with a body."""
    head = b"POST %b?x=1 HTTP/1.1\r\nHost: convlm\r\n" % path.encode() + b"".join(headers)
    if chunked:
        return head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    return head + b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


def answers(server: Server, *parts: bytes) -> list[bytes]:
    """The bodies that come on one connection for some requests, of which the last closes it, sent
    in parts with a packet each."""
    url = urlparse(server.url)
    assert url.hostname
    assert url.port
    found = b""
    with socket.create_connection((url.hostname, url.port), timeout=PATIENCE_SECONDS) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            connection.sendall(part)
        while received := connection.recv(1 << 16):
            found += received
    nothing, *each = found.split(b"HTTP/1.1 200 OK\r\n")
    assert not nothing
    return [answer.partition(b"\r\n\r\n")[2] for answer in each]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("path", ["/v1/score", "/v1/score/stream"])
def test_the_body_behind_an_offer_is_read(server: Server, path: str, chunked: bool) -> None:
    (found,) = answers(server, request(path, OFFER, CLOSE, chunked=chunked))
    (expected,) = answers(server, request(path, CLOSE, chunked=chunked))
    assert found == expected
    assert b"logprobs" in found


@pytest.mark.parametrize("place", [1, 10, 60, 120, -20, -1])
def test_a_request_may_come_in_two_packets(server: Server, place: int) -> None:
    whole = request("/v1/score", OFFER, CLOSE)
    (found,) = answers(server, whole[:place], whole[place:])
    assert b"logprobs" in found


def test_other_requests_follow_on_the_connection(server: Server) -> None:
    sent = [request("/v1/score", *headers) for headers in ([OFFER], [], [OFFER], [CLOSE])]
    for parts in (sent, [b"".join(sent)]):
        first, *others = answers(server, *parts)
        assert others == [first] * 3


def test_many_offers_in_one_packet_are_answered(server: Server) -> None:
    get = b"GET /livez HTTP/1.1\r\nHost: convlm\r\n%b\r\n"
    assert len(answers(server, get % OFFER * 1500 + get % CLOSE)) == 1501


@pytest.mark.parametrize("target", [b"a:80", b"/x"])
@pytest.mark.parametrize("offer", [b"", OFFER])
def test_a_tunnel_is_refused(server: Server, target: bytes, offer: bytes) -> None:
    url = urlparse(server.url)
    with socket.create_connection((url.hostname, url.port), timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(b"CONNECT %b HTTP/1.1\r\nHost: convlm\r\n%b\r\n" % (target, offer))
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 4")


def test_an_offer_without_a_body_is_answered(server: Server) -> None:
    get = b"GET /livez HTTP/1.1\r\nHost: convlm\r\n%b\r\n"
    assert answers(server, get % OFFER, get % CLOSE) == [b'{"status":"ok"}'] * 2


OLD: dict[str, tuple[bytes, bytes]] = {
    "score": (b"/v1/score", b'{"input": "a b"}'),
    "long": (b"/v1/score", json.dumps({"input": "a b " * 40_000}).encode()),
    "bulk": (b"/v1/score/stream", b'{"input": "a b"}\n' * 100),
    "stream": (b"/v1/completions", b'{"prompt": "a", "max_tokens": 20, "stream": true, "seed": 1}'),
}


def parts(server: Server, version: bytes, path: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Head and content of an answer, behind which the connection is closed."""
    url = urlparse(server.url)
    head = b"POST %b HTTP/%b\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    found = b""
    with socket.create_connection((url.hostname, url.port), PATIENCE_SECONDS) as connection:
        connection.sendall(head % (path, version, len(body)) + body)
        while received := connection.recv(1 << 16):
            found += received
    head, _, content = found.partition(b"\r\n\r\n")
    return head, content


def unchunked(content: bytes) -> bytes:
    """A body without the marks of its chunks."""
    found = b""
    while content:
        size, _, content = content.partition(b"\r\n")
        found, content = found + content[: int(size, 16)], content[int(size, 16) + 2 :]
    return found


def without_names(content: bytes) -> list[Any]:
    """The documents of an answer, but for what differs from answer to answer."""
    lines = [line.removeprefix(b"data: ") for line in content.splitlines() if line]
    found = [json.loads(line) for line in lines if line != b"[DONE]"]
    return [{k: v for k, v in line.items() if k not in ("id", "created")} for line in found]


@pytest.mark.parametrize("name", OLD)
def test_an_old_client_gets_the_answer_without_chunks(server: Server, name: str) -> None:
    head, content = parts(server, b"1.0", *OLD[name])
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    new_head, new_content = parts(server, b"1.1", *OLD[name])
    if b"transfer-encoding: chunked" in new_head:
        new_content = unchunked(new_content)
    assert without_names(content) == without_names(new_content)


def test_an_old_client_is_not_told_to_continue(server: Server) -> None:
    """`Expect` in an HTTP/1.0 request is to be ignored (RFC 9110, section 10.1.1)."""
    url = urlparse(server.url)
    head = b"POST /v1/score HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 16\r\n\r\n"
    with socket.create_connection((url.hostname, url.port), PATIENCE_SECONDS) as connection:
        connection.sendall(head + BODY)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 OK\r\n")


def test_an_offer_of_websocket_is_passed_over(server: Server) -> None:
    offer = b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    key = b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    (answer,) = answers(server, request("/v1/score", offer, key, CLOSE_UPGRADE))
    assert json.loads(answer)["data"]
