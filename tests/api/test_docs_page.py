"""The page /docs: whole without any other host, and nothing inline in it."""

from __future__ import annotations

import hashlib
import re
from urllib.parse import urljoin, urlsplit

import pytest

from app.api.docs_page import STATIC, SWAGGER_UI_VERSION
from tests.api.conftest import Server

VENDORED = STATIC / "swagger-ui"
TYPES = {
    "docs.js": "text/javascript",
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon-32x32.png": "image/png",
    "openapi.json": "application/json",
}


def references(server: Server) -> list[str]:
    """The addresses that the page names."""
    page = server.client.get("/docs").text
    return [
        urljoin(f"{server.url}/docs", name) for name in re.findall(r'(?:href|src)="(.*?)"', page)
    ]


def test_the_files_are_those_of_the_package() -> None:
    manifest = (VENDORED / "README.md").read_text(encoding="utf-8")
    assert f"version {SWAGGER_UI_VERSION}," in manifest
    sums = dict(re.findall(r"^\| `(.+?)` \| `([0-9a-f]{64})` \|$", manifest, re.MULTILINE))
    files = {path.name: path for path in VENDORED.iterdir() if path.name != "README.md"}
    assert {n: hashlib.sha256(p.read_bytes()).hexdigest() for n, p in files.items()} == sums


def test_all_that_the_page_loads_comes_from_the_server(server: Server) -> None:
    named = references(server)
    assert {urlsplit(address).path.rsplit("/", 1)[1] for address in named} == set(TYPES)
    for address in named:
        assert address.startswith(f"{server.url}/")
        answer, head = server.client.get(address), server.client.head(address)
        assert answer.status_code == head.status_code == 200, address
        assert answer.headers["content-type"].split(";")[0] == TYPES[address.rsplit("/", 1)[1]]
        assert head.headers["content-length"] == str(len(answer.content))
    style = (VENDORED / "swagger-ui.css").read_text(encoding="utf-8")
    assert set(re.findall(r"url\([\"']?([a-z]+:|.{5})", style)) == {"data:"}
    assert "@import" not in style


def test_the_policy_of_the_page_forbids_what_it_does_not_need(server: Server) -> None:
    answer = server.client.get("/docs")
    rules = dict(r.split(" ", 1) for r in answer.headers["content-security-policy"].split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["connect-src"] == "'self'"
    assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=", answer.text)


@pytest.mark.parametrize(
    ("path", "caching"),
    [("/docs", "no-cache"), (f"/docs/{SWAGGER_UI_VERSION}/swagger-ui.css", "max-age=31536000")],
)
def test_a_browser_that_has_a_file_is_not_sent_it_again(
    server: Server, path: str, caching: str
) -> None:
    first = server.client.get(path)
    assert caching in first.headers["cache-control"]
    again = server.client.get(path, headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = server.client.get(path, headers={"if-none-match": '"other"'})
    assert other.content == first.content


def test_the_page_that_loads_scripts_of_another_host_is_gone(server: Server) -> None:
    assert server.client.get("/redoc").status_code == 404
