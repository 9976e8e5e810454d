"""What OpenAPI says beyond what FastAPI finds by itself."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from app.api.http.request_ids import HEADER
from app.settings import Settings
from app.wire.bulk import BatchLine, BulkError, BulkLine, BulkScore, BulkSummary
from app.wire.completions import CompletionRequest
from app.wire.models import ErrorResponse
from app.wire.next import NextRequest
from app.wire.rescore import RescoreRequest
from app.wire.score import ScoreRequest
from app.wire.tokenize import DetokenizeRequest, TokenizeRequest

_BODIES = (
    ScoreRequest,
    BatchLine,
    BulkLine,
    BulkScore,
    BulkError,
    BulkSummary,
    RescoreRequest,
    NextRequest,
    CompletionRequest,
    TokenizeRequest,
    DetokenizeRequest,
    ErrorResponse,
)
"""Bodies that endpoints parse or write themselves, which the schema would lack."""
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


def schema_of(app: FastAPI, settings: Settings) -> dict[str, Any]:
    """The schema of an application with the limits of its settings."""
    schema = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    _, definitions = models_json_schema(
        [(body, "validation") for body in _BODIES], ref_template="#/components/schemas/{model}"
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
