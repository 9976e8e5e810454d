"""GET /v1/models."""

from __future__ import annotations

from fastapi import APIRouter, Request

from app.api.http.openapi import errors
from app.catalog.catalog import Catalog
from app.catalog.folders import Place
from app.wire.models import Model, ModelList

router = APIRouter()


@router.get("/v1/models", summary="List models")
async def models(request: Request) -> ModelList:
    """The models of this server, loaded or not, the default first."""
    catalog: Catalog = request.app.state.catalog
    return ModelList(data=[_described(catalog, place) for place in catalog.places])


@router.get("/v1/models/{name}", summary="One model", responses=errors(404))
async def model(request: Request, name: str) -> Model:
    """One model by name."""
    catalog: Catalog = request.app.state.catalog
    return _described(catalog, catalog.place(name))


def _described(catalog: Catalog, place: Place) -> Model:
    return Model(
        id=place.name,
        created=place.created,
        root=place.name,
        max_model_len=catalog.settings.max_request_tokens,
    )
