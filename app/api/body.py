"""Reading a request's body: bounded while it arrives, then straight into its model.

FastAPI would parse JSON before validation, in a way that fails on deep nesting; here one parser
with a depth limit does both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from app.api.errors import CLIENT_CLOSED, from_validation
from app.api.openapi import errors, reference
from app.errors import RequestError, TooLargeError

Model = TypeVar("Model", bound=BaseModel)

_INLINE_BYTES = 1 << 16


async def read(request: Request, model: type[Model], limit: int) -> Model:
    """The body as `model`. Raises RequestError, TooLargeError."""
    raw = bytearray()
    async for part in request.stream():
        raw += part
        if len(raw) > limit:
            raise TooLargeError(f"body: over the limit max_request_bytes, {limit}", None)
    try:
        if len(raw) <= _INLINE_BYTES:
            return model.model_validate_json(bytes(raw))
        return await asyncio.to_thread(model.model_validate_json, bytes(raw))
    except ValidationError as error:
        check_unpacked(request)
        raise from_validation(error) from None


def check_unpacked(request: Request) -> None:
    """Raises RequestError for a body that says to be packed."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        message = f"content-encoding: {encoding} is not unpacked; send the body as it is"
        raise RequestError(message, "content-encoding")


async def unless_gone(request: Request, answer: Coroutine[Any, Any, Response]) -> Response:
    """Runs a handler, cancelling it when the client leaves; the body must have been read."""
    task = asyncio.current_task()
    assert task is not None
    watch = asyncio.create_task(_left(request.receive, task))
    try:
        return await answer
    except asyncio.CancelledError:
        # cancelled for the client alone: nobody else asked
        if not (watch.done() and not watch.cancelled() and task.uncancel() == 0):
            raise
        return Response(status_code=CLIENT_CLOSED)
    finally:
        watch.cancel()


async def _left(receive: Callable[[], Awaitable[Any]], task: asyncio.Task[Any]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    task.cancel()


def documented(model: type[BaseModel]) -> dict[str, Any]:
    """What OpenAPI says of a body that `read` parses, and of what may be wrong with it."""
    content = {"application/json": {"schema": reference(model)}}
    return {
        "requestBody": {"required": True, "content": content},
        "responses": {str(status): error for status, error in errors(400, 404, 413).items()},
    }
