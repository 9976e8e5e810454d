"""Liveness, readiness, version and metrics."""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app.wire.models import Health, Version


async def livez() -> Health:
    """200 as long as the process answers at all."""
    return Health()


async def readyz(request: Request) -> Health:
    """200 once all models to load at the start are loaded; 503 before, and when an engine has
    stopped."""
    request.app.state.catalog.check()
    return Health()


async def version(request: Request) -> Version:
    """The version of the package, whatever the models are."""
    return Version(version=request.app.version)


async def metrics(request: Request) -> Response:
    """Counters and histograms in Prometheus' text format."""
    registry = request.app.state.metrics.registry
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
