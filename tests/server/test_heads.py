"""Heads that are too long, and requests that are not HTTP/1.1."""

from __future__ import annotations

import json
import logging
import time

import pytest

from tests.api.conftest import Server
from tests.server.raw import answered, connect, error_of, parsed, rest

HOST = b"Host: x\r\n"
CLOSE = b"Connection: close\r\n"
BODY = b'{"input": "a b"}'
CHUNKED = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
SCORE = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 16\r\n\r\n" + BODY


def get(*headers: bytes, url: bytes = b"/livez", version: bytes = b"1.1") -> bytes:
    """A request without a body."""
    return b"GET %b HTTP/%b\r\n%b\r\n" % (url, version, b"".join(headers))


def post(*headers: bytes, content: bytes = b"") -> bytes:
    """A request with headers of its own."""
    return b"POST /v1/score HTTP/1.1\r\nHost: x\r\n%b\r\n%b" % (b"".join(headers), content)


INVALID = {
    "no host": get(),
    "two hosts": get(HOST, HOST),
    "two different hosts": get(HOST, b"Host: y\r\n"),
    "two hosts in HTTP/1.0": get(HOST, HOST, version=b"1.0"),
    "lengths and chunks": post(
        b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", content=b"0\r\n\r\n"
    ),
    "chunks and lengths": post(
        b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", content=b"0\r\n\r\n"
    ),
    "two lengths": post(b"Content-Length: 3\r\nContent-Length: 4\r\n", content=b"abcd"),
    "a list of lengths": post(b"Content-Length: 3, 3\r\n", content=b"abc"),
    "a negative length": post(b"Content-Length: -3\r\n"),
    "a length with a sign": post(b"Content-Length: +3\r\n", content=b"abc"),
    "a length of 23 digits": post(b"Content-Length: 99999999999999999999999\r\n"),
    "another coding": post(b"Transfer-Encoding: gzip, chunked\r\n", content=b"0\r\n\r\n"),
    "another coding alone": post(b"Transfer-Encoding: gzip\r\n", content=b"0\r\n\r\n"),
    "chunks twice": post(b"Transfer-Encoding: chunked, chunked\r\n", content=b"0\r\n\r\n"),
    "chunks in HTTP/1.0": CHUNKED.replace(b"1.1", b"1.0") + b"0\r\n\r\n",
    "a size that is no number": CHUNKED + b"zz\r\n",
    "a size of 17 digits": CHUNKED + b"fffffffffffffffff\r\n",
    "a folded header": get(HOST, b"a: b\r\n c\r\n"),
    "bare line feeds": get(HOST).replace(b"\r\n", b"\n"),
    "a bare carriage return": get(HOST, b"a: b\rc: d\r\n"),
    "a space before the colon": get(HOST, b"a : b\r\n"),
    "a header without a name": get(HOST, b": b\r\n"),
    "a NUL in a header": get(HOST, b"a: b\0c\r\n"),
    "a NUL in the URL": get(HOST, url=b"/\0"),
    "a byte over 127 in the URL": get(HOST, url=b"/\xff"),
    "a scheme that is not served": get(HOST, url=b"ftp://x/livez"),
    "no host in the URL": get(HOST, url=b"http://"),
    "a method in small letters": get(HOST).replace(b"GET", b"get"),
    "an unknown method": get(HOST).replace(b"GET", b"GETX"),
    "HTTP/0.9": b"GET /livez\r\n\r\n",
    "HTTP/1.2": get(HOST, version=b"1.2"),
    "HTTP/2.0": get(HOST, version=b"2.0"),
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500,
}


@pytest.mark.parametrize("name", INVALID)
def test_what_is_not_http_is_refused_as_any_error(
    server: Server, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert error_of(answered(server, INVALID[name])) == (400, "invalid_http")
    assert not caplog.records
    server.assert_alive()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (get(HOST, CLOSE), 200),
        (get(version=b"1.0"), 200),
        (get(HOST, version=b"1.0"), 200),
        (get(HOST, CLOSE, url=b"http://y:80/livez?x=1"), 200),
        (get(HOST, CLOSE, url=b"http://y"), 404),
        (get(HOST, CLOSE, url=b"*").replace(b"GET", b"OPTIONS"), 404),
        (get(HOST, CLOSE, url=b"/livez#x"), 200),
        (b"\r\n\r\n" + get(HOST, CLOSE), 200),
        (post(b"Expect: 100-Continue\r\nContent-Length: 2\r\n", CLOSE, content=b"{}"), 100),
        (post(b"Expect: x\r\nContent-Length: 2\r\n", content=b"{}"), 417),
        (get(b"Expect: x\r\n", version=b"1.0"), 200),
    ],
)
def test_what_is_http_is_answered(server: Server, sent: bytes, status: int) -> None:
    assert parsed(answered(server, sent))[0] == status


def test_the_host_of_an_absolute_url_counts(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []
    inner = server.app.middleware_stack
    assert inner is not None

    async def spy(scope, receive, send):  # type: ignore[no-untyped-def]
        seen.append(dict(scope["headers"])[b"host"])
        await inner(scope, receive, send)

    monkeypatch.setattr(server.app, "middleware_stack", spy)
    answered(server, get(HOST, CLOSE, url=b"http://y.example:81/livez"))
    assert seen == [b"y.example:81"]


LONG = {
    "one header": b"GET / HTTP/1.1\r\nHost: x\r\na: " + b"a" * (1 << 20),
    "the name of a header": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a" * (1 << 20),
    "many headers": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * (1 << 17),
    "spaces": b"GET / HTTP/1.1\r\nHost: x\r\na: " + b" " * (1 << 20),
    "trailers": CHUNKED + b"10\r\n" + BODY + b"\r\n0\r\n" + b"a: b\r\n" * (1 << 17),
    "one trailer": CHUNKED + b"10\r\n" + BODY + b"\r\n0\r\na:" + b"a" * (1 << 20),
    "a trailer after many chunks": CHUNKED + b"1\r\n \r\n" * 50_000 + b"0\r\na:" + b"a" * (1 << 20),
    "an extension": CHUNKED + b"10;" + b"a" * (1 << 20),
    "extensions": CHUNKED + (b"1;" + b"a" * 1000 + b"\r\n \r\n") * 1000,
}


@pytest.mark.parametrize("name", LONG)
def test_an_endless_head_is_refused_while_it_comes(server: Server, name: str) -> None:
    assert error_of(answered(server, LONG[name])) == (431, "headers_too_large")
    server.assert_alive()


def test_an_endless_url_is_refused_while_it_comes(server: Server) -> None:
    assert error_of(answered(server, b"GET /" + b"a" * (1 << 20))) == (414, "url_too_long")


def test_heads_and_chunks_below_the_limit_are_taken(server: Server) -> None:
    url = b"/livez?" + b"a" * 30_000
    fields = [b"a: %b\r\n" % (b"b" * 1000)] * 30
    assert parsed(answered(server, get(HOST, CLOSE, *fields, url=url)))[0] == 200
    padded = BODY.replace(b"a b", b"a b " * 10_000)
    chunks = b"".join(b"%08x\r\n%c\r\n" % (1, byte) for byte in padded)  # more framing than content
    sent = CHUNKED.replace(b"Host", CLOSE + b"Host") + chunks + b"0\r\na: b\r\n\r\n"
    assert parsed(answered(server, sent))[0] == 200


def test_trailers_are_no_headers(server: Server) -> None:
    sent = CHUNKED.replace(b"Host", CLOSE + b"Host") + b"10\r\n" + BODY + b"\r\n0\r\n"
    answer = answered(server, sent + b"x-request-id: mine\r\n\r\n")
    assert parsed(answer)[1]["x-request-id"] != "mine"


def test_an_error_comes_after_the_answers_to_earlier_requests(server: Server) -> None:
    answer = answered(server, SCORE * 3 + b"NONSENSE\r\n\r\n")
    first, second, third, last = answer.split(b"HTTP/1.1 ")[1:]
    assert all(each.startswith(b"200") for each in (first, second, third))
    assert error_of(b"HTTP/1.1 " + last) == (400, "invalid_http")


def test_a_refused_request_ends_its_connection(server: Server) -> None:
    answer = answered(server, get() + get(HOST) * 20)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert error_of(answer)[0] == 400


def test_a_body_that_breaks_off_ends_a_response_that_has_begun(server: Server) -> None:
    sent = CHUNKED.replace(b"/score", b"/score/stream") + b"11\r\n" + BODY + b"\n\r\n"
    with connect(server, sent) as connection:
        begun = b""
        while b"logprob" not in begun:
            begun += connection.recv(1 << 16)
        connection.sendall(b"zz\r\n")
        assert b"HTTP/1.1" not in rest(connection)
    server.assert_alive()


def test_thousands_of_requests_in_a_packet_are_answered_in_order(server: Server) -> None:
    known, unknown = get(HOST), get(HOST, url=b"/unknown")
    answer = answered(server, (known * 30 + unknown) * 40 + get(HOST, CLOSE, url=b"/last"))
    statuses = [int(each[:3]) for each in answer.split(b"HTTP/1.1 ")[1:]]
    assert statuses == ([200] * 30 + [404]) * 40 + [404]


def test_a_client_that_still_sends_reads_its_refusal(server: Server) -> None:
    """Closing at once would reset the connection, and the answer be lost."""
    with connect(server, get()) as connection:
        try:
            for _ in range(50):
                connection.sendall(b"a" * (1 << 16))
        except OSError:
            pytest.fail("the connection was reset")
        status, _, body = parsed(connection.recv(1 << 16))
    assert status == 400
    assert "host" in json.loads(body)["error"]["message"]


UPLOAD = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%b\r\n"


@pytest.mark.parametrize(
    "head",
    [
        UPLOAD % (10 << 20, b"Connection: close\r\nOrigin: https://page.example\r\n"),
        UPLOAD.replace(b"1.1", b"1.0").replace(b"/v1/score", b"/unknown") % (10 << 20, b""),
    ],
)
def test_an_answer_before_the_body_is_not_lost_with_the_connection(
    server: Server, head: bytes
) -> None:
    """Closing while a client sends resets the connection, and may discard the answer."""
    with connect(server, head) as connection:
        for _ in range(160):
            connection.sendall(b" " * (1 << 16))
            time.sleep(0.001)
        answer = rest(connection)
        assert parsed(answer)[0] in (403, 404)
        assert parsed(answer)[1]["connection"] == "close"


def test_a_connection_ends_with_the_body_after_its_answer(server: Server) -> None:
    head = UPLOAD % (4, b"Connection: close\r\nOrigin: https://page.example\r\n")
    with connect(server, head) as connection:
        answer = b""
        while b"origin_not_allowed" not in answer:
            answer += connection.recv(1 << 16)
        connection.sendall(b"body" + UPLOAD % (0, b""))
        assert rest(connection) == b""
    server.assert_alive()
