"""Endpoints that are asked most often, answered in front of FastAPI's routing.

For a short text its dependencies and its stack of contexts take as long as all else that is done
on the event loop. FastAPI still documents these endpoints, and answers other methods.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.http.errors import respond

Endpoint = Callable[[Request], Awaitable[Response]]


class Direct:
    """ASGI middleware. endpoints: by path, for POST."""

    def __init__(self, app: ASGIApp, endpoints: Mapping[str, Endpoint]) -> None:
        self._app, self._endpoints = app, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        post = scope["type"] == "http" and scope["method"] == "POST"
        endpoint = self._endpoints.get(scope["path"]) if post else None
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        try:
            response = await endpoint(Request(scope, receive))
        except Exception as error:  # those that nobody expects are logged there
            response = respond(error)
        await response(scope, receive, send)
