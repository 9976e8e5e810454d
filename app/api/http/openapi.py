"""Completes the OpenAPI schema that FastAPI generates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from app.api.http.deadlines import HEADER as TIMEOUT_HEADER
from app.api.http.request_ids import HEADER
from app.settings import Settings
from app.wire.models import ErrorResponse

_MEANINGS = {
    400: "Bad request",
    403: "A web page of another origin",
    404: "Unknown model",
    413: "Over a limit",
    421: "A host name that is not the server's",
    500: "A fault of the server, or of the engine in a batch",
    503: "Not ready, overloaded, or stopping",
    504: "No answer within the time that the request gave",
}
_REQUEST_ID = {
    "description": "The id that the request sent, or one generated for it.",
    "schema": {"type": "string"},
    "required": True,
}
_RETRY_AFTER = {
    "description": "Seconds after which to try again.",
    "schema": {"type": "integer", "minimum": 1, "maximum": 120},
    "required": True,
}


_SHOULD_RETRY = {
    "description": "`false` if trying again is of no use now.",
    "schema": {"type": "string", "enum": ["false"]},
}
TIMEOUT = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "description": "Milliseconds for the answer; without it by then the request is dropped, and "
    "answered with 504.",
    "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999_999},
}


def reference(model: type[BaseModel]) -> dict[str, str]:
    """A reference to a model in the schema."""
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Responses with these statuses."""
    content = {"application/json": {"schema": reference(ErrorResponse)}}
    return {status: {"description": _MEANINGS[status], "content": content} for status in statuses}


def json_request(model: type[BaseModel]) -> dict[str, Any]:
    """An operation's JSON body that its handler parses, and the responses to a bad one."""
    content = {"application/json": {"schema": reference(model)}}
    return {
        "requestBody": {"required": True, "content": content},
        "responses": {str(status): error for status, error in errors(400, 404, 413).items()},
    }


def schema_of(
    app: FastAPI, models: Iterable[type[BaseModel]], settings: Settings
) -> dict[str, Any]:
    """The schema of an application with the limits of its settings.

    models: bodies that FastAPI does not know, since handlers parse or write them themselves.
    """
    schema = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    _, definitions = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(_limited(definitions["$defs"], settings.model_dump()))
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for operation in (o for path in schema["paths"].values() for o in path.values()):
        responses = operation["responses"]
        responses.pop("422", None)  # FastAPI adds it; bad bodies get 400 here
        for status, response in responses.items():
            response["headers"] = {HEADER: _REQUEST_ID}
            if status == "503":
                response["headers"]["retry-after"] = _RETRY_AFTER
            if status in ("503", "504"):
                response["headers"]["x-should-retry"] = _SHOULD_RETRY
    return schema


def _limited(part: Any, limits: dict[str, Any]) -> Any:
    """Replaces names of settings in bounds by their values, and lowers defaults to them."""
    if isinstance(part, list):
        return [_limited(item, limits) for item in part]
    if not isinstance(part, dict):
        return part
    copy = {key: _limited(value, limits) for key, value in part.items()}
    for key in ("maximum", "maxItems"):
        if isinstance(copy.get(key), str):
            copy[key] = limits[copy[key]]
    bounds = [kind["maximum"] for kind in copy.get("anyOf", ()) if "maximum" in kind]
    if bounds and copy.get("default") is not None:
        copy["default"] = min(copy["default"], *bounds)
    return copy
