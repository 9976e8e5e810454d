"""Each response has its request's name, and so has a line of the log."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.errors import OverloadError
from tests.api.conftest import Server, failing, serving, settings_for

NAME = "x-request-id"
MADE = re.compile(r"[0-9a-f]{32}")
REQUESTS: list[tuple[str, str, object, int]] = [
    ("POST", "/v1/score", {"input": "Alice"}, 200),
    ("POST", "/v1/score", {"input": "a " * 60_000}, 200),  # written in parts
    ("POST", "/v1/score", {"input": 5}, 400),
    ("POST", "/v1/score/stream", {"input": "Alice"}, 200),
    ("POST", "/v1/score/stream?order=none", {}, 400),
    ("POST", "/v1/completions", {"max_tokens": 2}, 200),
    ("POST", "/v1/completions", {"max_tokens": 2, "stream": True}, 200),
    ("POST", "/v1/completions", {"max_tokens": 10**6}, 413),
    ("POST", "/tokenize", {"prompt": "a"}, 200),
    ("POST", "/tokenize", {"prompt": "a", "model": "none"}, 404),
    ("GET", "/v1/score", None, 405),
    ("GET", "/v1/models", None, 200),
    ("GET", "/nowhere", None, 404),
    ("GET", "/livez", None, 200),
    ("HEAD", "/livez", None, 200),
    ("GET", "/readyz", None, 200),
    ("GET", "/metrics", None, 200),
    ("GET", "/openapi.json", None, 200),
]


def asked(server: Server, method: str, path: str, body: object, **headers: str) -> httpx.Response:
    """The response to a request with some headers."""
    return server.client.request(method, path, json=body, headers=headers)


@pytest.mark.parametrize(("method", "path", "body", "status"), REQUESTS)
def test_a_response_has_the_name_that_its_request_came_with(
    server: Server, method: str, path: str, body: object, status: int
) -> None:
    response = asked(server, method, path, body, **{NAME: "my-name.7"})
    assert response.status_code == status
    assert response.headers.get_list(NAME) == ["my-name.7"]
    unnamed = [asked(server, method, path, body).headers[NAME] for _ in range(2)]
    assert all(MADE.fullmatch(name) for name in unnamed)
    assert unnamed[0] != unnamed[1]


@pytest.mark.parametrize("name", ["", "a b", "x" * 129, "caf\u00e9", "a\tb"])
def test_a_name_that_is_no_word_of_bounded_length_is_replaced(server: Server, name: str) -> None:
    response = server.client.get("/livez", headers={NAME: name.encode("latin-1")})
    assert MADE.fullmatch(response.headers[NAME])
    longest = "x" * 128
    assert asked(server, "GET", "/livez", None, **{NAME: longest}).headers[NAME] == longest


@pytest.mark.parametrize("path", ["/v1/score", "/tokenize"])
def test_a_fault_of_ours_has_the_name(
    server: Server, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(server.app.state.catalog), "check", failing(ZeroDivisionError()))
    response = asked(server, "POST", path, {"input": "a"}, **{NAME: "mine"})
    assert (response.status_code, response.headers[NAME]) == (500, "mine")


def test_a_request_is_one_line_of_the_log_without_its_text(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        headers = {NAME: "mine"}
        asked(server, "POST", "/v1/score", {"input": "a secret"}, **headers)
        asked(server, "GET", "/v1/tokenizer_info?model=secret", None, **headers)
        asked(server, "GET", "/no%0Aline", None, **headers)
    lines = [r.getMessage() for r in caplog.records if r.name != "httpx"]  # the client's own
    assert [re.sub(r" client=127\.0\.0\.1:\d+", "", line) for line in lines] == [
        "request method=POST path=/v1/score status=200 id=mine",
        "request method=GET path=/v1/tokenizer_info status=404 id=mine",
        "request method=GET path=/no%0Aline status=404 id=mine",
    ]


@pytest.fixture(scope="module")
def open_to_all(tiny_folder: Path) -> Iterator[Server]:
    """A server that every page may ask."""
    with serving(settings_for(tiny_folder, cors_origins="*")) as running:
        yield running


@pytest.mark.parametrize(
    ("error", "status"), [(None, 200), (OverloadError("full", 7), 503), (ZeroDivisionError(), 500)]
)
def test_a_page_may_read_the_name_and_when_to_try_again(
    open_to_all: Server, error: Exception | None, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if error is not None:
        monkeypatch.setattr(type(open_to_all.app.state.catalog), "check", failing(error))
    response = asked(open_to_all, "POST", "/tokenize", {"prompt": "a"}, origin="https://a.example")
    assert response.status_code == status
    assert response.headers["access-control-allow-origin"] == "*"
    exposed = response.headers["access-control-expose-headers"].split(", ")
    assert {NAME, "retry-after"} <= set(exposed)
    assert NAME in response.headers
