"""Field types that several bodies share."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

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


def whole(value: Any) -> Any:
    """The integer that a number such as 5.0 is, as JSON Schema has it; any other value as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = BeforeValidator(whole)
"""Beside an integer's type: the field takes 5.0 for 5."""

_MAX_ID = 2**31 - 1


def _whole_ids(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Lists of integers alone, as nearly all are, are not gone through in Python."""
    try:
        return validate(value)
    except ValidationError:
        if not isinstance(value, list) or float not in set(map(type, value)):
            raise
    return validate([whole(item) for item in value])


TokenIds = Annotated[
    list[Annotated[int, Field(ge=0, le=_MAX_ID)]],
    Field(fail_fast=True),
    WrapValidator(_whole_ids),
]
"""Token ids of one text, of which the first bad one is an error."""

IDS_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": _MAX_ID}}
_SOME = {"type": "array", "minItems": 1, "maxItems": "max_request_texts"}
INPUTS_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {**_SOME, "items": {"type": "string"}},
        {**IDS_SCHEMA, "minItems": 1},
        {**_SOME, "items": {**IDS_SCHEMA, "minItems": 1}},
    ]
}
"""Texts or lists of token ids; a single one may be there without its list."""
_STRICT = ConfigDict(strict=True)
_text = TypeAdapter(str, config=_STRICT)
_texts: TypeAdapter[list[str]] = TypeAdapter(Texts, config=_STRICT)
_ids: TypeAdapter[list[int]] = TypeAdapter(TokenIds, config=_STRICT)
_id_lists: TypeAdapter[list[list[int]]] = TypeAdapter(
    Annotated[list[TokenIds], Field(fail_fast=True)], config=_STRICT
)


def ids_of(values: list[Any]) -> list[int] | None:
    """The whole numbers of a list that holds nothing else."""
    kinds = set(map(type, values))
    if kinds <= {int}:
        return values
    found = [whole(value) for value in values] if kinds <= {int, float} else []
    return found if set(map(type, found)) == {int} else None


def _inputs(value: object) -> list[str] | list[list[int]]:
    if isinstance(value, list) and value:
        if ids_of(value[:1]):
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
    WithJsonSchema(INPUTS_SCHEMA),
]
"""Texts, or the token ids of each; a single one may be there without its list."""

TextOrIds = Annotated[
    str | list[int],
    PlainValidator(_text_or_ids),
    WithJsonSchema({"anyOf": [{"type": "string"}, IDS_SCHEMA]}),
]
"""A text, or its token ids."""


class NullIsDefault(BaseModel):
    """A request body in which null stands for the default of a field that may be left out."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: item for name, item in value.items() if item is not None}
        return value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The schema in which every field that may be left out may be null."""
        schema = handler(core_schema)
        own = handler.resolve_ref_schema(schema)
        for name, field in own["properties"].items():
            if name not in own.get("required", ()):
                own["properties"][name] = _or_null(field)
        return schema


_ABOUT = ("title", "description", "default")


def _or_null(field: JsonSchemaValue) -> JsonSchemaValue:
    """A field's schema, or null."""
    null = {"type": "null"}
    if "anyOf" in field:
        return {**field, "anyOf": [kind for kind in field["anyOf"] if kind != null] + [null]}
    about = {key: value for key, value in field.items() if key in _ABOUT}
    kind = {key: value for key, value in field.items() if key not in _ABOUT}
    return {"anyOf": [kind, null], **about}


class Body(NullIsDefault):
    """A request body of our own endpoints: exact types, no unknown field."""

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
        return value


class ForeignBody(NullIsDefault):
    """A request body in another server's shape: unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class Usage(BaseModel):
    """Tokens read. Each text, context or prompt counts once."""

    prompt_tokens: int
    total_tokens: int
