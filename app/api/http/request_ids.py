"""Identifies each request, in its response and in the log."""

from __future__ import annotations

import logging
import re
import secrets
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_log = logging.getLogger(__name__)

HEADER = "x-request-id"
_HEADER = HEADER.encode()
_VALID = re.compile(rb"[!-~]{1,128}")
"""Visible ASCII without spaces, so that an id is one word in the log."""


class RequestIds:
    """ASGI middleware: takes a request's id from its header, or generates one.

    Logs a line when a response begins, without the query and the body.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = dict(scope["headers"]).get(_HEADER, b"")
        request_id = sent if _VALID.fullmatch(sent) else secrets.token_hex(16).encode()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {
                    **message,
                    "headers": [*message.get("headers", ()), (_HEADER, request_id)],
                }
                if _log.isEnabledFor(logging.INFO):
                    _log.info(
                        "request client=%s method=%s path=%s status=%d id=%s",
                        ":".join(map(str, scope.get("client") or ())),
                        scope["method"],
                        quote(scope["path"]),
                        message["status"],
                        request_id.decode(),
                    )
            await send(message)

        await self._app(scope, receive, send_with_id)
