"""GET /docs: the API in Swagger UI, whose files are in `static/`: no other host is asked."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import Response

SWAGGER_UI_VERSION = "5.35.0"
STATIC = Path(__file__).parent / "static"
_FOREVER, _ASK_AGAIN = "public, max-age=31536000, immutable", "no-cache"
"""Caching of files whose address names their version, and of the others."""
_POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The style sheet of Swagger UI has its images inside, as `data:` addresses."""


@dataclass(frozen=True, slots=True)
class _File:
    """A file and how it is served. path: of the address, with the version of Swagger UI."""

    path: str
    name: str
    media_type: str
    caching: str = _FOREVER


_FILES = (
    _File("/docs", "docs.html", "text/html", _ASK_AGAIN),
    _File("/docs/docs.js", "docs.js", "text/javascript", _ASK_AGAIN),
    *(
        _File(f"/docs/{SWAGGER_UI_VERSION}/{name}", f"swagger-ui/{name}", media_type)
        for name, media_type in (
            ("swagger-ui-bundle.js", "text/javascript"),
            ("swagger-ui-bundle.js.LICENSE.txt", "text/plain"),
            ("swagger-ui.css", "text/css"),
            ("favicon-32x32.png", "image/png"),
        )
    ),
)


def add_docs(app: FastAPI) -> None:
    """Adds the page and the files that it loads."""
    for file in _FILES:
        app.add_route(file.path, _handler(file), methods=["GET"], include_in_schema=False)


def _handler(file: _File) -> Callable[[Request], Awaitable[Response]]:
    read = functools.cache(lambda: _read(file))

    async def respond(request: Request) -> Response:
        content, tag = read()
        headers = {
            "etag": tag,
            "cache-control": file.caching,
            "content-security-policy": _POLICY,
            "x-content-type-options": "nosniff",
        }
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=file.media_type)

    return respond


def _read(file: _File) -> tuple[bytes, str]:
    """A file's content and its entity tag."""
    content = (STATIC / file.name).read_bytes()
    if file.media_type == "text/html":
        content = content.replace(b"{version}", SWAGGER_UI_VERSION.encode())
    return content, f'"{hashlib.sha256(content).hexdigest()[:32]}"'
