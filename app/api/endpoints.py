"""The endpoints, each declared once: routes, the fast path and /openapi.json follow from them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from fastapi.datastructures import Default
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from app.api import bulk, completions, next, rescore, score, status, tokenize
from app.api.http.openapi import TIMEOUT, errors, json_request, reference
from app.wire.bulk import BatchLine, BulkError, BulkLine, BulkScore, BulkSummary
from app.wire.completions import CompletionRequest, CompletionResponse
from app.wire.models import ErrorResponse, Health, Model, ModelList, Version
from app.wire.next import NextRequest, NextResponse
from app.wire.rescore import RescoreRequest, RescoreResponse
from app.wire.score import ScoreRequest, ScoreResponse
from app.wire.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
    TokenizerInfo,
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A handler with its routes; its docstring is their description in /openapi.json.

    request: the JSON body, which the handler parses itself. response: the JSON body of the answer;
    None for another media type, described in `responses` or `openapi`. fast: POST is answered
    without FastAPI's routing.
    """

    routes: str
    """Methods and paths, comma-separated."""
    handler: Callable[..., Awaitable[Any]]
    summary: str
    request: type[BaseModel] | None = None
    response: type[BaseModel] | None = None
    responses: dict[int | str, dict[str, Any]] = field(default_factory=dict)
    openapi: dict[str, Any] = field(default_factory=dict)
    fast: bool = False

    @property
    def described(self) -> dict[str, Any]:
        """What /openapi.json says of it besides what FastAPI knows."""
        if self.request is None:
            return self.openapi
        operation = json_request(self.request)
        if self.fast:
            operation["parameters"] = [TIMEOUT]
            operation["responses"]["504"] = errors(504)[504]
        return operation

    @property
    def pairs(self) -> Iterator[tuple[str, str]]:
        """Method and path of each route."""
        for route in self.routes.split(", "):
            method, path = route.split()
            yield method, path


def _any_of(*models: type[BaseModel]) -> dict[str, Any]:
    return {"anyOf": [reference(model) for model in models]}


_NDJSON_LINES = {
    "requestBody": {
        "description": "NDJSON; the schema is that of a line.",
        "required": True,
        "content": {bulk.NDJSON: {"schema": _any_of(BulkLine, BatchLine)}},
    },
    "responses": {
        "200": {
            "description": "NDJSON; the schema is that of a line. A line for each line that "
            "is not blank, then the summary, or an error instead.",
            "content": {
                bulk.NDJSON: {"schema": _any_of(BulkScore, BulkError, BulkSummary, ErrorResponse)}
            },
        },
        "400": errors(400)[400],
        "504": errors(504)[504],
    },
    "parameters": [
        {
            "name": "order",
            "in": "query",
            "description": "Answer in the order of the lines, or each when it is ready.",
            "schema": {"type": "string", "enum": list(bulk.ORDERS), "default": "input"},
        },
    ],
}
_EVENT = {
    "type": "object",
    "required": ["data"],
    "properties": {
        "data": {
            "anyOf": [
                {
                    "type": "string",
                    "contentMediaType": "application/json",
                    "contentSchema": _any_of(CompletionResponse, ErrorResponse),
                },
                {"const": "[DONE]"},
            ]
        }
    },
}
_JSON_OR_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "JSON, or with `stream` server-sent events; their schema is that of an "
        "event.",
        "content": {"text/event-stream": {"schema": _EVENT}},
    }
}
_PLAIN_TEXT: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}}
}

ENDPOINTS = (
    Endpoint("POST /v1/score", score.score, "Score texts", ScoreRequest, ScoreResponse, fast=True),
    Endpoint(
        "POST /v1/score/stream", bulk.score_stream, "Score lines of NDJSON", openapi=_NDJSON_LINES
    ),
    Endpoint(
        "POST /v1/rescore",
        rescore.rescore,
        "Rank n-best lists",
        RescoreRequest,
        RescoreResponse,
        fast=True,
    ),
    Endpoint(
        "POST /v1/next", next.next_tokens, "The next token", NextRequest, NextResponse, fast=True
    ),
    Endpoint(
        "POST /v1/completions",
        completions.completions,
        "Complete text",
        CompletionRequest,
        CompletionResponse,
        _JSON_OR_EVENTS,
        fast=True,
    ),
    Endpoint(
        "POST /tokenize, POST /v1/tokenize",
        tokenize.tokenize,
        "Text to tokens",
        TokenizeRequest,
        TokenizeResponse,
    ),
    Endpoint(
        "POST /detokenize, POST /v1/detokenize",
        tokenize.detokenize,
        "Tokens to text",
        DetokenizeRequest,
        DetokenizeResponse,
    ),
    Endpoint(
        "GET /tokenizer_info, GET /v1/tokenizer_info",
        tokenize.tokenizer_info,
        "The tokenizer",
        response=TokenizerInfo,
        responses=errors(404),
    ),
    Endpoint("GET /v1/models", status.models, "List models", response=ModelList),
    Endpoint(
        "GET /v1/models/{name}", status.model, "One model", response=Model, responses=errors(404)
    ),
    Endpoint("GET /livez", status.livez, "Is the process alive?", response=Health),
    Endpoint(
        "POST /ping, GET /ping, GET /health, GET /readyz",
        status.readyz,
        "Can it answer requests?",
        response=Health,
    ),
    Endpoint("GET /version", status.version, "The server's version", response=Version),
    Endpoint("GET /metrics", status.metrics, "Prometheus metrics", responses=_PLAIN_TEXT),
)
FAST_PATHS = {path: each.handler for each in ENDPOINTS if each.fast for _, path in each.pairs}
SCHEMAS: tuple[type[BaseModel], ...] = (
    *(each.request for each in ENDPOINTS if each.request is not None),
    *(BatchLine, BulkLine, BulkScore, BulkError, BulkSummary, ErrorResponse),
)
"""Bodies that handlers parse or write themselves, so that FastAPI does not know them."""


def add_routes(app: FastAPI) -> None:
    """Adds the routes of all endpoints."""
    for each in ENDPOINTS:
        for method, path in each.pairs:
            app.add_api_route(
                path,
                each.handler,
                methods=[method],
                summary=each.summary,
                response_model=each.response,
                responses=each.responses,
                openapi_extra=each.described,
                response_class=Default(JSONResponse) if each.response else Response,
            )
