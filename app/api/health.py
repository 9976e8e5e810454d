"""Whether the process lives, whether it can answer, and its metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app.wire.models import Health, Version

router = APIRouter()


@router.get("/livez", summary="Is the process alive?")
async def livez() -> Health:
    """200 as long as the process answers at all."""
    return Health()


@router.get("/readyz", summary="Can it answer requests?")
@router.get("/health", summary="Can it answer requests?")
@router.get("/ping", summary="Can it answer requests?")
@router.post("/ping", summary="Can it answer requests?")
async def readyz(request: Request) -> Health:
    """200 once all models that are loaded at the start are there; 503 before, and when an engine
    has stopped."""
    request.app.state.catalog.check()
    return Health()


@router.get("/version", summary="The server's version")
async def version(request: Request) -> Version:
    """The version of the package, whatever the models are."""
    return Version(version=request.app.version)


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """Counters and histograms in Prometheus' text format."""
    registry = request.app.state.metrics.registry
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
