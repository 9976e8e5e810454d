"""Bodies of POST /v1/completions, in OpenAI's shape."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from app.wire.fields import Strings

Prompts = list[str] | list[list[int]]
_INT64 = 2**63


def _prompts(value: object) -> object:
    """null, a string, strings, token ids or lists of them, as a list of prompts."""
    if value is None or isinstance(value, str):
        return [value or ""]
    if not isinstance(value, list) or not value:
        raise PydanticCustomError(
            "prompt", "must be a string, a list of strings, a list of token ids or a list of those"
        )
    if all(isinstance(item, str) for item in value):
        return value
    if all(_is_id(item) for item in value):
        return [value]
    if all(isinstance(item, list) and item and all(map(_is_id, item)) for item in value):
        return value
    raise PydanticCustomError(
        "prompt", "must hold strings alone, token ids alone, or non-empty lists of token ids alone"
    )


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_IDS = {"type": "array", "items": {"type": "integer"}}
_STRINGS = {"type": "array", "items": {"type": "string"}}


def _stops(value: object) -> object:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return value
    raise PydanticCustomError("stop", "must be a string or a list of strings")


class StreamOptions(BaseModel):
    """What a stream carries besides text."""

    model_config = ConfigDict(strict=True, extra="allow")

    include_usage: bool | None = False


class CompletionRequest(BaseModel):
    """A completion. An explicit null means the default; unknown fields are ignored and counted."""

    model_config = ConfigDict(
        strict=True,
        extra="allow",
        allow_inf_nan=False,
        json_schema_extra={
            "examples": [
                {"prompt": "The history of the town", "max_tokens": 40, "temperature": 0.8},
                {"prompt": "Once upon a time", "stream": True, "seed": 7, "stop": ["\n"]},
            ]
        },
    )

    model: Annotated[str | None, Field(description="A name from /v1/models.")] = None
    prompt: Annotated[
        Prompts,
        PlainValidator(_prompts),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string"},
                    _STRINGS,
                    _IDS,
                    {"type": "array", "items": _IDS},
                    {"type": "null"},
                ]
            }
        ),
        Field(description="Text, which goes on from the start symbol, or token ids as they are."),
    ] = Field(default_factory=lambda: [""])
    max_tokens: Annotated[int, Field(ge=0, description="0 with echo scores the prompt.")] = 16
    temperature: Annotated[float, Field(ge=0, le=2, description="0 is greedy.")] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0, description="0 leaves all tokens in.")] = 0
    n: Annotated[int, Field(ge=1, description="Choices for each prompt.")] = 1
    stop: Annotated[
        Strings,
        BeforeValidator(_stops),
        WithJsonSchema({"anyOf": [{"type": "string"}, _STRINGS, {"type": "null"}]}),
        Field(description="Strings that end the text; never part of it."),
    ] = Field(default_factory=list)
    seed: Annotated[
        int | None, Field(ge=-_INT64, lt=_INT64, description="The same seed, the same text.")
    ] = None
    logprobs: Annotated[
        int | None,
        Field(ge=0, description="Alternatives for each token; 0 lists the chosen one alone."),
    ] = None
    echo: Annotated[bool, Field(description="Put the prompt in front of the text.")] = False
    stream: Annotated[bool, Field(description="Answer with server-sent events.")] = False
    stream_options: StreamOptions | None = None
    best_of: Annotated[int | None, Field(description="Accepted when it equals n.")] = None
    suffix: Annotated[str | None, Field(description="Not supported.")] = None
    logit_bias: Annotated[dict[str, Any] | None, Field(description="Not supported yet.")] = None
    presence_penalty: Annotated[float, Field(description="Not supported yet.")] = 0.0
    frequency_penalty: Annotated[float, Field(description="Not supported yet.")] = 0.0
    user: Annotated[str | None, Field(description="Ignored.")] = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: item for name, item in value.items() if item is not None}
        return value

    @model_validator(mode="after")
    def _supported(self) -> Self:
        if self.best_of not in (None, self.n):
            raise PydanticCustomError("best_of", "best_of: must be null or equal to n")
        for name, default in (
            ("suffix", (None, "")),
            ("logit_bias", (None, {})),
            ("presence_penalty", (0.0,)),
            ("frequency_penalty", (0.0,)),
        ):
            if getattr(self, name) not in default:
                raise PydanticCustomError(name, f"{name}: this server does not support it")
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("stream_options", "stream_options: needs stream to be true")
        return self


class Logprobs(BaseModel):
    """Parallel lists; the first token of a prompt has null in two of them."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class Choice(BaseModel):
    """One text. `finish_reason` is null in all but the last chunk of a stream."""

    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"] | None


class CompletionUsage(BaseModel):
    """Tokens of all prompts, each once, and of all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionResponse(BaseModel):
    """A completion, or a chunk of one."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage | None = None
    system_fingerprint: str
