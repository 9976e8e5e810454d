"""Bodies of GET /v1/models, of health checks and of errors."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class Model(BaseModel):
    """A model that can be named in a request."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "convlm"
    root: str
    max_model_len: int


class ModelList(BaseModel):
    """All models of the server."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """The answer of a server that is alive, or ready."""

    status: Literal["ok"] = "ok"


class Version(BaseModel):
    """The version of the server."""

    version: str


class ErrorDetail(BaseModel):
    """What went wrong; `param` names the field."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """Every error's body."""

    error: ErrorDetail
