"""GET /v1/models."""

from __future__ import annotations

from fastapi import APIRouter, Request

from app.lm import LanguageModel
from app.wire.models import Model, ModelList

router = APIRouter()


@router.get("/v1/models", summary="List models")
async def models(request: Request) -> ModelList:
    """The models of this server."""
    return ModelList(data=[_described(model) for model in request.app.state.catalog.models])


@router.get("/v1/models/{name}", summary="One model")
async def model(request: Request, name: str) -> Model:
    """One model by name."""
    return _described(request.app.state.catalog.get(name))


def _described(model: LanguageModel) -> Model:
    return Model(
        id=model.name,
        created=model.bundle.config.created,
        root=model.name,
        max_model_len=model.settings.max_request_tokens,
    )
