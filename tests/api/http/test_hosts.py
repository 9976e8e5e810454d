"""Names that the server answers to, and web pages that may ask it."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.api.http.hosts import AllowedHosts
from app.settings import Settings
from tests.api.conftest import Server, serving, settings_for
from tests.api.http.test_errors import error_of


@pytest.fixture(scope="module")
def strict(tiny_folder: Path) -> Iterator[Server]:
    """A server that answers to the names of this machine alone, as it does by default."""
    with serving(settings_for(tiny_folder, allowed_hosts="")) as server:
        yield server


LOOPBACK = ["localhost", "localhost:8000", "LocalHost.", "127.0.0.1:1", "127.8.8.8", "[::1]:8000"]
OTHERS = [
    *("evil.example", "localhost.evil.example", "evil.example:8000", "localhost:80:80", "[::2]"),
    *("10.0.0.1", "0.0.0.0", "a@localhost", "[::1", "::1", "xlocalhost", "localhost..", "127.1.x"),
]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1"])
def test_a_server_of_this_machine_alone_answers_to_its_names(host: str) -> None:
    hosts = AllowedHosts.of(Settings(host=host))
    for _ in range(2):  # also once it is remembered
        assert [name for name in LOOPBACK if not hosts.allow(name.encode())] == []
        assert [name for name in OTHERS if hosts.allow(name.encode())] == []


@pytest.mark.parametrize(
    ("host", "own"),
    [("192.168.7.5", "192.168.7.5:8000"), ("fe80::7%lo", "[FE80:0::7]:80"), ("Box.lan", "box.lan")],
)
def test_a_server_of_one_address_answers_to_it_too(host: str, own: str) -> None:
    hosts = AllowedHosts.of(Settings(host=host))
    assert hosts.allow(own.encode())
    assert hosts.allow(b"localhost")
    assert not hosts.allow(b"192.168.7.6")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "0", "0:0::0"])
def test_a_server_of_all_addresses_answers_to_any_name(host: str) -> None:
    assert all(AllowedHosts.of(Settings(host=host)).allow(name.encode()) for name in OTHERS)


def test_the_setting_names_hosts_and_endings() -> None:
    given = "api.example.org, *.Example.NET,[2001:db8::1], ::1,10.0.0.1:80"
    hosts = AllowedHosts.of(Settings(host="0.0.0.0", allowed_hosts=given))
    allowed = [
        *("API.example.org:443", "a.example.net", "a.b.example.net.", "[2001:DB8:0::1]:8000"),
        *("[::1]", "10.0.0.1", *LOOPBACK),
    ]
    assert [name for name in allowed if not hosts.allow(name.encode())] == []
    refused = ["example.org", "example.net", "xexample.net", "a.api.example.org"]
    assert [name for name in refused if hosts.allow(name.encode())] == []
    assert AllowedHosts.of(Settings(allowed_hosts=" * ")).allow(b"any.example")


@pytest.mark.parametrize(
    "given", ["https://a.example", "a.example, *", "*.", "*.*", "a*", "b\u00fccher.example", "a b"]
)
def test_a_name_that_could_not_be_meant_is_refused_at_the_start(given: str) -> None:
    with pytest.raises(ValidationError, match="is no name or address"):
        Settings(allowed_hosts=given)


def test_what_is_remembered_of_names_is_bounded() -> None:
    hosts = AllowedHosts(["*.example.org"])
    for number in range(5000):
        assert hosts.allow(b"n%d.example.org" % number)
        assert not hosts.allow(b"n%d.example.net" % number)
    assert len(hosts._known) == 1000
    hosts = AllowedHosts(["*.example.org"])
    assert hosts.allow(b"a" * 60_000 + b".example.org")
    assert not hosts._known
    assert not hosts.allow(b"a.example.org:" + b"0" * 60_000)


def test_another_name_is_refused_and_logged_once(
    strict: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for name in ("rebound.example", "rebound.example", "a\x9b.example"):
            headers = {"host": name.encode("latin-1"), "x-request-id": "mine"}
            answer = strict.client.post("/v1/score", json={"input": "a"}, headers=headers)
            error = error_of(answer, 421)
            assert error["code"] == "host_not_allowed"
            assert "allowed_hosts" in error["message"]
            assert answer.headers["x-request-id"] == "mine"
    first, second = (r.getMessage() for r in caplog.records if "host" in r.getMessage())
    assert "name='rebound.example'" in first
    assert "CONVLM_ALLOWED_HOSTS" in first
    assert second.isprintable()
    for path in ("/livez", "/readyz", "/health", "/ping"):  # orchestrators ask by the address
        assert strict.client.get(path, headers={"host": "10.1.2.3:8000"}).status_code == 200
    assert strict.client.get("/metrics", headers={"host": "10.1.2.3"}).status_code == 421


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET http://rebound.example/version HTTP/1.1\r\nHost: localhost", 421),
        ("GET http://localhost:80/version HTTP/1.1\r\nHost: rebound.example", 200),
        ("GET http://[::1]:80/version HTTP/1.1\r\nHost: localhost", 200),
        ("GET /version HTTP/1.0", 200),
        ("GET /version HTTP/1.0\r\nHost: rebound.example", 421),
        ("GET /version?http://rebound.example/ HTTP/1.1\r\nHost: localhost", 200),
    ],
)
def test_the_host_of_an_absolute_url_counts(strict: Server, head: str, status: int) -> None:
    address = (strict.client.base_url.host, strict.client.base_url.port or 80)
    with socket.create_connection(address) as connection:
        connection.sendall(f"{head}\r\nConnection: close\r\n\r\n".encode())
        with connection.makefile("rb") as answer:
            assert int(answer.readline().split()[1]) == status


@pytest.fixture(scope="module")
def open_to_any_page(tiny_folder: Path) -> Iterator[Server]:
    """A server whose answers all pages may read."""
    with serving(settings_for(tiny_folder, cors_origins="*")) as server:
        yield server


FOREIGN = [
    "https://page.example",
    "null",
    "http://localhost:1",
    "http://localhost.",
    "file://",
    "x",
]


@pytest.mark.parametrize("origin", FOREIGN)
def test_pages_of_other_origins_are_refused(
    server: Server, open_to_any_page: Server, origin: str
) -> None:
    for content_type in ("text/plain", "application/json", "application/x-www-form-urlencoded"):
        headers = {"origin": origin, "content-type": content_type}
        answer = server.client.post("/v1/score", content='{"input": "a"}', headers=headers)
        error = error_of(answer, 403)
        assert error["code"] == "origin_not_allowed"
        assert "cors_origins" in error["message"]
        again = open_to_any_page.client.post("/v1/score", content='{"input": "a"}', headers=headers)
        assert again.status_code == 200
    for method in ("GET", "OPTIONS", "PUT"):
        assert server.client.request(method, "/version", headers={"origin": origin}).is_error


def test_its_own_pages_and_extensions_may_ask(server: Server) -> None:
    own = server.url
    pages = [
        *((own, None), (own.upper(), None), (own.replace("http:", "https:"), None)),
        *(("http://localhost", "localhost:80"), ("https://localhost", "localhost")),
        *(("chrome-extension://abcdef", None), ("moz-extension://1-2", None)),
        ("safari-web-extension://1", None),
    ]
    for origin, host in pages:
        headers = {"origin": origin} | ({"host": host} if host else {})
        answer = server.client.post("/v1/score", json={"input": "a"}, headers=headers)
        assert answer.status_code == 200, origin
