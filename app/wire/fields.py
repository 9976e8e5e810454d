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

Strings = Annotated[list[str], Field(fail_fast=True)]
"""Strings. Only the first bad one is reported: millions of errors would take gigabytes."""


def integral(value: Any) -> Any:
    """Makes a float such as 5.0 an integer, as in JSON Schema; any other value stays as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integral = BeforeValidator(integral)
"""With an integer type: the field takes 5.0 as 5."""

ModelName = Annotated[str | None, Field(description="A name from /v1/models.")]


TimeoutSeconds = Annotated[
    float | None,
    Field(
        gt=0,
        description="Time for the answer; without it by then the request is dropped, and answered "
        "with 504. Of this and the header `x-request-timeout-ms` the smaller counts.",
    ),
]
Priority = Annotated[
    int,
    Field(
        ge=0,
        description="0 is interactive, above 0 is bulk: done when nothing interactive waits, or in "
        "a reserved share.",
    ),
    Integral,
]


def in_schema(**members: Any) -> Any:
    """Members of a field's schema only, such as a bound with the name of its setting."""
    return Field(json_schema_extra=members)


def examples(*bodies: dict[str, Any]) -> ConfigDict:
    """A body's configuration with examples for its schema."""
    return ConfigDict(json_schema_extra={"examples": list(bodies)})


_MAX_ID = 2**31 - 1
_IDS_AT_ONCE = 1 << 16
"""Ids that are validated at a time, in about 3 ms, before other threads may run."""


def _integral_ids(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Loops in Python only over lists that hold floats, which are rare."""
    try:
        if isinstance(value, list) and len(value) > _IDS_AT_ONCE:
            return _in_slices(value, validate)
        return validate(value)
    except ValidationError:
        if not isinstance(value, list) or float not in set(map(type, value)):
            raise
    return validate([integral(item) for item in value])


def _in_slices(values: list[Any], validate: ValidatorFunctionWrapHandler) -> Any:
    """The same as `validate`, which keeps the interpreter to itself."""
    valid: list[Any] = []
    for first in range(0, len(values), _IDS_AT_ONCE):
        part = values[first : first + _IDS_AT_ONCE]
        try:
            valid += validate(part)
        except ValidationError:
            return validate(values)  # which names the index in the list
    return valid


TokenIds = Annotated[
    list[Annotated[int, Field(ge=0, le=_MAX_ID)]],
    Field(fail_fast=True),
    WrapValidator(_integral_ids),
]
"""Token ids of one text. Only the first bad one is reported."""

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
"""Texts or lists of token ids; a single one may stand without its list."""
_STRICT = ConfigDict(strict=True)
_text = TypeAdapter(str, config=_STRICT)
_texts: TypeAdapter[list[str]] = TypeAdapter(
    Annotated[Strings, Field(min_length=1)], config=_STRICT
)
_ids: TypeAdapter[list[int]] = TypeAdapter(TokenIds, config=_STRICT)
_id_lists: TypeAdapter[list[list[int]]] = TypeAdapter(
    Annotated[list[TokenIds], Field(fail_fast=True)], config=_STRICT
)


def ids_of(values: list[Any]) -> list[int] | None:
    """A list of numbers as integers; None if it holds anything else."""
    kinds = set(map(type, values))
    if kinds <= {int}:
        return values
    ids = [integral(value) for value in values] if kinds <= {int, float} else []
    return ids if set(map(type, ids)) == {int} else None


def _inputs(value: object) -> list[str] | list[list[int]]:
    values = [value] if isinstance(value, str) else value
    if isinstance(values, list) and values and ids_of(values[:1]):
        return [_ids.validate_python(values)]
    if not isinstance(values, list) or (values and not isinstance(values[0], str | list)):
        raise PydanticCustomError(
            "texts", "must be a string, a list of strings, a list of token ids or a list of those"
        )
    adapter = _id_lists if values and isinstance(values[0], list) else _texts
    return adapter.validate_python(values)


def _text_or_ids(value: object) -> str | list[int]:
    if not isinstance(value, str | list):
        raise PydanticCustomError("text_or_ids", "must be a string or a list of token ids")
    adapter = _ids if isinstance(value, list) else _text
    return adapter.validate_python(value)


Inputs = Annotated[
    list[str] | list[list[int]], PlainValidator(_inputs), WithJsonSchema(INPUTS_SCHEMA)
]
"""Texts, or the token ids of each; a single one may stand without its list."""

TextOrIds = Annotated[
    str | list[int],
    PlainValidator(_text_or_ids),
    WithJsonSchema({"anyOf": [{"type": "string"}, IDS_SCHEMA]}),
]
"""A text, or its token ids."""


class NullIsDefault(BaseModel):
    """A request body in which null means the default of an optional field."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

    parts: ClassVar[dict[str, int]] = {}
    """Strings, lists and objects that a body may have for each unit of a setting."""

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
        """The schema in which every optional field may be null."""
        schema = handler(core_schema)
        resolved = handler.resolve_ref_schema(schema)
        for name, field in resolved["properties"].items():
            if name not in resolved.get("required", ()):
                resolved["properties"][name] = _or_null(field)
        return schema


def _or_null(field: JsonSchemaValue) -> JsonSchemaValue:
    """A field's schema, or null."""
    null = {"type": "null"}
    if "anyOf" in field:
        return {**field, "anyOf": [kind for kind in field["anyOf"] if kind != null] + [null]}
    about: JsonSchemaValue = {
        key: field.pop(key) for key in ("title", "description", "default") if key in field
    }
    return {"anyOf": [field, null], **about}


class Body(NullIsDefault):
    """A request body of our endpoints: exact types, no unknown fields."""

    model_config = ConfigDict(extra="forbid")

    unknown_fields: ClassVar[dict[str, str]] = {}
    """Messages for fields that a caller may expect from another server."""

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        """Reports only the first unknown field; `extra` would report each of a million."""
        if isinstance(value, dict):
            for name in value:
                if name not in cls.model_fields:
                    said = cls.unknown_fields.get(name, "unknown field")
                    raise PydanticCustomError(
                        "unknown_field", "{name}: {said}", {"name": name, "said": said}
                    )
        return value


class ForeignBody(NullIsDefault):
    """A request body in the format of another server: unknown fields are ignored."""

    model_config = ConfigDict(extra="allow")


class Usage(BaseModel):
    """Tokens read. Each text, context or prompt counts once."""

    prompt_tokens: int
    total_tokens: int
