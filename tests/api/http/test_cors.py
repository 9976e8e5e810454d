"""Web pages of other origins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.conftest import Server, serving, settings_for

PAGE = "https://page.example"


@pytest.fixture(scope="module")
def open_to_a_page(tiny_folder: Path) -> Iterator[Server]:
    """A server that a page and one more may ask."""
    changed = {"cors_origins": f" {PAGE}/, http://localhost:3000"}
    with serving(settings_for(tiny_folder, **changed)) as server:
        yield server


def test_a_page_that_may_ask_is_told_so(open_to_a_page: Server) -> None:
    asks = {"origin": PAGE, "access-control-request-method": "POST"}
    asks["access-control-request-headers"] = "content-type, authorization"
    before = open_to_a_page.client.options("/v1/score", headers=asks)
    assert before.status_code == 200
    assert before.headers["access-control-allow-origin"] == PAGE
    assert "authorization" in before.headers["access-control-allow-headers"]
    for path, body in (("/v1/score", {"input": "a"}), ("/v1/score", {})):
        answer = open_to_a_page.client.post(path, json=body, headers={"origin": PAGE})
        assert answer.headers["access-control-allow-origin"] == PAGE
    other = {"origin": "https://other.example"}
    answer = open_to_a_page.client.post("/v1/score", json={"input": "a"}, headers=other)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_a_page_may_read_a_stream(open_to_a_page: Server) -> None:
    body = {"prompt": "a", "max_tokens": 3, "stream": True}
    with open_to_a_page.client.stream(
        "POST", "/v1/completions", json=body, headers={"origin": PAGE}
    ) as answer:
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "[DONE]" in answer.read().decode()


def test_unasked_nothing_is_allowed(server: Server) -> None:
    answer = server.client.post("/v1/score", json={"input": "a"}, headers={"origin": PAGE})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers
