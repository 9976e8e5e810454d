"""Field types that several bodies share."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

_INPUTS = "must be a string, a list of strings, a list of token ids or a list of those"


def _listed(value: object) -> object:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return value
    raise PydanticCustomError("texts", _INPUTS)


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

_STRINGS = {"type": "array", "items": {"type": "string"}}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_STRICT = ConfigDict(strict=True)
_text = TypeAdapter(str, config=_STRICT)
_texts: TypeAdapter[list[str]] = TypeAdapter(Texts, config=_STRICT)
_ids: TypeAdapter[list[int]] = TypeAdapter(TokenIds, config=_STRICT)
_id_lists: TypeAdapter[list[list[int]]] = TypeAdapter(
    Annotated[list[TokenIds], Field(fail_fast=True)], config=_STRICT
)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _inputs(value: object) -> list[str] | list[list[int]]:
    if isinstance(value, list) and value:
        if _is_id(value[0]):
            return [_ids.validate_python(value)]
        if isinstance(value[0], list):
            return _id_lists.validate_python(value)
        if not isinstance(value[0], str):
            raise PydanticCustomError("texts", _INPUTS)
    return _texts.validate_python(value)


def _text_or_ids(value: object) -> str | list[int]:
    if not isinstance(value, str | list):
        raise PydanticCustomError("text_or_ids", "must be a string or a list of token ids")
    adapter = _ids if isinstance(value, list) else _text
    return adapter.validate_python(value)


Inputs = Annotated[
    list[str] | list[list[int]],
    PlainValidator(_inputs),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, _STRINGS, _IDS, {"type": "array", "items": _IDS}]}
    ),
]
"""Texts, or the token ids of each; a single one may be there without its list."""

TextOrIds = Annotated[
    str | list[int],
    PlainValidator(_text_or_ids),
    WithJsonSchema({"anyOf": [{"type": "string"}, _IDS]}),
]
"""A text, or its token ids."""


class Body(BaseModel):
    """A request body of our own endpoints: exact types, no unknown field; null is the default."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    unknown_fields: ClassVar[dict[str, str]] = {}
    """What an error says of an unknown field that one may expect."""

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        """Names the first unknown field, as `extra` would name each of a million."""
        if isinstance(value, dict):
            for name in value:
                if name not in cls.model_fields:
                    said = cls.unknown_fields.get(name, "unknown field")
                    raise PydanticCustomError(
                        "unknown_field", "{name}: {said}", {"name": name, "said": said}
                    )
            return {name: item for name, item in value.items() if item is not None}
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
