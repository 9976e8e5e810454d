"""Makes exceptions responses, in OpenAI's error shape on every path."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Route

from app.errors import DeadlineError, EngineError, NotReadyError, OverloadError, RequestError
from app.wire.models import ErrorDetail, ErrorResponse

_log = logging.getLogger(__name__)

CLIENT_CLOSED = 499
"""The status, seen only in logs, of a request whose client has left."""
MAX_RETRY_SECONDS = 120
NO_RETRY = {"x-should-retry": "false"}
"""The header that OpenAI's clients read: they would repeat a 503 or 504 at once otherwise."""
_SHOWN_CHARACTERS = 500
"""Length to which messages and names are cut: a field's name may have megabytes."""
_PARSER_WORDS = {
    "recursion limit exceeded": "nested more than 200 deep",
    "unicode code point": "text must be UTF-8",
    "hex escape": "a lone surrogate or an incomplete escape",
}
_ELSEWHERE = {
    "/v1/chat/completions": "this server has a base language model, not a chat model; use "
    "/v1/completions",
    "/v1/responses": "this server has a base language model; use /v1/completions",
    "/v1/embeddings": "this server gives no embeddings; it scores (/v1/score) and completes text",
}


def error_body(
    message: str, kind: str, param: str | None = None, code: str | None = None
) -> dict[str, object]:
    """An error's body."""
    shown, name = message[:_SHOWN_CHARACTERS], param and param[:_SHOWN_CHARACTERS]
    detail = ErrorDetail(message=shown, type=kind, param=name, code=code)
    return ErrorResponse(error=detail).model_dump()


def describe(error: Exception) -> tuple[int, dict[str, object], dict[str, str]]:
    """Status, body and headers of the response to an exception."""
    match error:
        case RequestError():
            kind = "invalid_request_error"
            return error.status, error_body(error.message, kind, error.field, error.code), {}
        case OverloadError():
            headers = {"retry-after": str(min(error.retry_seconds, MAX_RETRY_SECONDS))}
            if error.retry_seconds > MAX_RETRY_SECONDS:
                headers |= NO_RETRY
            return 503, error_body(error.message, "server_error", None, "overloaded"), headers
        case DeadlineError():
            return 504, error_body(str(error), "server_error", None, "timeout"), NO_RETRY
        case NotReadyError():
            body = error_body(str(error), "server_error", None, "not_ready")
            return 503, body, {"retry-after": "1"}
        case EngineError():
            return 500, error_body(str(error), "server_error", None, "engine_error"), {}
        case _:
            _log.error("request failed", exc_info=error)
            return 500, error_body("internal error", "server_error"), {}


def from_validation(error: ValidationError) -> RequestError:
    """The first of pydantic's errors, with the field's name before its message."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or None
    message = first["msg"]
    if first["type"] == "json_invalid":
        return invalid_json(message)
    if first["type"] == "unknown_field":
        before = f"{field}." if field else ""
        return RequestError(before + message, before + first["ctx"]["name"], "unknown_field")
    if first["type"] == "too_short":
        message = (
            f"must have at least {first['ctx']['min_length']}, not {first['ctx']['actual_length']}"
        )
    if field is None and first["type"] not in ("model_type", "model_attributes_type"):
        return RequestError(message, first["type"])  # a rule about several fields names its field
    return RequestError(f"{field or 'body'}: {message}", field)


def invalid_json(message: str) -> RequestError:
    """The error of a body that is not JSON, with the parser's message and what it means."""
    reasons = [plain for words, plain in _PARSER_WORDS.items() if words in message]
    return RequestError("; ".join([f"body: {message}", *reasons]), None, "invalid_json")


def respond(error: Exception) -> Response:
    """The response to an exception."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=CLIENT_CLOSED)
    status, body, headers = describe(error)
    return JSONResponse(body, status, headers)


def install(app: FastAPI) -> None:
    """Gives every error of an application this shape. All routes must have been added."""
    routes = [route for route in app.routes if isinstance(route, Route)]

    def methods(request: Request) -> set[str]:
        matching = (r for r in routes if r.matches(request.scope)[0] is not Match.NONE)
        named = {method for route in matching for method in route.methods or ()}
        return named | {"HEAD"} if "GET" in named else named  # see `fast_path.HeadAsGet`

    async def known(request: Request, error: Exception) -> Response:
        return respond(error)

    kinds = (
        RequestError,
        OverloadError,
        DeadlineError,
        NotReadyError,
        EngineError,
        ClientDisconnect,
    )
    for kind in kinds:
        app.add_exception_handler(kind, known)

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        path = request.url.path
        message = _ELSEWHERE.get(path) or {
            404: f"there is nothing at {path}; see /docs",
            405: f"{request.method} is not allowed at {path}; see /docs",
        }.get(error.status_code, str(error.detail))
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        status = 404 if path in _ELSEWHERE else error.status_code
        headers = dict(error.headers or {})
        if "Allow" in headers:  # Starlette names the methods of one route only
            headers["Allow"] = ", ".join(sorted(methods(request)))
        return JSONResponse(
            error_body(message, "invalid_request_error", None, code), status, headers
        )

    app.add_exception_handler(HTTPException, http)
