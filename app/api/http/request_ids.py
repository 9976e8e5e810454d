"""A name for each request, which its response and its line in the log have."""

from __future__ import annotations

import logging
import re
import secrets
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_log = logging.getLogger(__name__)

HEADER = "x-request-id"
_HEADER = HEADER.encode()
_SANE = re.compile(rb"[!-~]{1,128}")
"""Visible ASCII, so that a name is one word on the line of the log."""


class RequestIds:
    """ASGI middleware: takes a request's name from its header, or makes one.

    Logs a line for each response that begins, without the query and the body.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(_HEADER, b"")
        name = given if _SANE.fullmatch(given) else secrets.token_hex(16).encode()

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (_HEADER, name)]}
                if _log.isEnabledFor(logging.INFO):
                    _log.info(
                        "request client=%s method=%s path=%s status=%d id=%s",
                        ":".join(map(str, scope.get("client") or ())),
                        scope["method"],
                        quote(scope["path"]),
                        message["status"],
                        name.decode(),
                    )
            await send(message)

        await self._app(scope, receive, named)
