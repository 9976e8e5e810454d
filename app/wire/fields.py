"""Field types that several bodies share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError


def _listed(value: object) -> object:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return value
    raise PydanticCustomError("texts", "must be a string or a list of strings")


Strings = Annotated[list[str], Field(fail_fast=True)]
"""Strings, of which the first bad one is an error: one for each of millions takes gigabytes."""

Texts = Annotated[
    Strings,
    Field(min_length=1),
    BeforeValidator(_listed),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
"""One text or a list of texts; an error names the text's index."""


_MAX_ID = 2**31 - 1

TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=_MAX_ID)]], Field(fail_fast=True)]
"""Token ids of one text, of which the first bad one is an error."""


class Body(BaseModel):
    """A request body of our own endpoints: exact types, no unknown field."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        """Names the first unknown field, as `extra` would name each of a million."""
        if isinstance(value, dict):
            for name in value:
                if name not in cls.model_fields:
                    raise PydanticCustomError(
                        "unknown_field", "{name}: unknown field", {"name": name}
                    )
        return value


class ForeignBody(BaseModel):
    """A request body in another server's shape: null is the default, unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: item for name, item in value.items() if item is not None}
        return value


class Usage(BaseModel):
    """Tokens read. Each text, context or prompt counts once."""

    prompt_tokens: int
    total_tokens: int
