"""What OpenAPI says beyond what FastAPI finds by itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from app.api.http.request_ids import HEADER
from app.settings import Settings
from app.wire.models import ErrorResponse

_MEANINGS = {
    400: "Bad request",
    404: "Unknown model",
    413: "Over a limit",
    500: "A fault of the server, or of the engine in a batch",
    503: "Not ready, overloaded, or stopping",
}
_REQUEST_ID = {
    "description": "The request's own, or one that was made for it.",
    "schema": {"type": "string"},
    "required": True,
}
_RETRY_AFTER = {
    "description": "Seconds after which to try again.",
    "schema": {"type": "integer", "minimum": 1, "maximum": 120},
    "required": True,
}


def reference(model: type[BaseModel]) -> dict[str, str]:
    """A body's place in the schema."""
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Responses with these statuses."""
    content = {"application/json": {"schema": reference(ErrorResponse)}}
    return {status: {"description": _MEANINGS[status], "content": content} for status in statuses}


def json_request(model: type[BaseModel]) -> dict[str, Any]:
    """What an operation says of a JSON body that its handler parses, and of what may be wrong."""
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
        responses.pop("422", None)  # FastAPI's own; bad bodies get 400 here
        for status, response in responses.items():
            headers = {HEADER: _REQUEST_ID}
            response["headers"] = headers | (
                {"retry-after": _RETRY_AFTER} if status == "503" else {}
            )
    return schema


def _limited(part: Any, limits: dict[str, Any]) -> Any:
    """A schema in which a bound that names a setting has its value; no default is above it."""
    if isinstance(part, list):
        return [_limited(item, limits) for item in part]
    if not isinstance(part, dict):
        return part
    made = {key: _limited(value, limits) for key, value in part.items()}
    for key in ("maximum", "maxItems"):
        if isinstance(made.get(key), str):
            made[key] = limits[made[key]]
    bounds = [kind["maximum"] for kind in made.get("anyOf", ()) if "maximum" in kind]
    if bounds and made.get("default") is not None:
        made["default"] = min(made["default"], *bounds)
    return made
