"""GET /v1/models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import Request

from app.wire.models import Model, ModelList

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
