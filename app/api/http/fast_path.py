"""Middleware before FastAPI's routing; it answers the endpoints that are called most often.

For a short text FastAPI's dependencies and its stack of contexts take as long as all other work on
the event loop. FastAPI still documents these endpoints and answers other methods.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.http.errors import respond

Handler = Callable[[Request], Awaitable[Response]]


class HeadAsGet:
    """ASGI middleware: answers HEAD as GET, as FastAPI's routes do not.

    uvicorn leaves out the body.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


class FastPath:
    """ASGI middleware. handlers: of POST, by path."""

    def __init__(self, app: ASGIApp, handlers: Mapping[str, Handler]) -> None:
        self._app, self._handlers = app, handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        post = scope["type"] == "http" and scope["method"] == "POST"
        handler = self._handlers.get(scope["path"]) if post else None
        if handler is None:
            await self._app(scope, receive, send)
            return
        try:
            response = await handler(Request(scope, receive))
        except Exception as error:  # unexpected ones are logged by `respond`
            response = respond(error)
        await response(scope, receive, send)
