"""What the server tells of itself: its models, liveness, readiness, version and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app.wire.models import Health, Model, ModelList, Version

if TYPE_CHECKING:
    from app.catalog.catalog import Catalog
    from app.catalog.folders import BundleFolder


async def models(request: Request) -> ModelList:
    """The models of this server, loaded or not, the default first."""
    catalog: Catalog = request.app.state.catalog
    return ModelList(data=[_described(catalog, bundle) for bundle in catalog.bundles])


async def model(request: Request, name: str) -> Model:
    """One model by name."""
    catalog: Catalog = request.app.state.catalog
    return _described(catalog, catalog.bundle(name))


def _described(catalog: Catalog, bundle: BundleFolder) -> Model:
    return Model(
        id=bundle.name,
        created=bundle.created,
        root=bundle.name,
        max_model_len=catalog.settings.max_request_tokens,
    )


async def livez() -> Health:
    """200 as long as the process answers at all."""
    return Health()


async def readyz(request: Request) -> Health:
    """200 once all models to load at the start are loaded; 503 before, when an engine has stopped,
    and from SIGTERM on."""
    request.app.state.catalog.check_ready()
    return Health()


async def version(request: Request) -> Version:
    """The version of the package, whatever the models are."""
    return Version(version=request.app.version)


async def metrics(request: Request) -> Response:
    """Counters and histograms in Prometheus' text format."""
    registry = request.app.state.metrics.registry
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
