"""Bodies of POST /v1/completions, in OpenAI's format."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from app.wire.fields import (
    INPUTS_SCHEMA,
    ForeignBody,
    Integral,
    ModelName,
    Priority,
    TimeoutSeconds,
    TokenIds,
    examples,
    ids_of,
    in_schema,
)

Prompts = list[str] | list[list[int]]
_LONGEST_STRING = 1000
"""Characters of a stop string or a bad word: each is compared with every token generated."""
_SHORT_STRING = {"type": "string", "maxLength": _LONGEST_STRING}
_ShortStrings = Annotated[
    list[Annotated[str, Field(max_length=_LONGEST_STRING)]],
    Field(fail_fast=True),
    in_schema(maxItems="max_stop_strings"),
]
_Alternatives = Annotated[int | None, Field(ge=-1), in_schema(maximum="max_top_logprobs"), Integral]


def _prompts(value: object) -> object:
    """null, a string, strings, token ids or lists of them, as a list of prompts."""
    if value is None or isinstance(value, str):
        return [value or ""]
    if value == []:
        raise PydanticCustomError("prompt", "must not be an empty list")
    if not isinstance(value, list):
        raise PydanticCustomError(
            "prompt", "must be a string, a list of strings, a list of token ids or a list of those"
        )
    if all(isinstance(item, str) for item in value):
        return value
    if (ids := ids_of(value)) is not None:
        return [ids]
    lists = [ids_of(item) if isinstance(item, list) and item else None for item in value]
    if None not in lists:
        return lists
    raise PydanticCustomError(
        "prompt", "must hold strings alone, token ids alone, or non-empty lists of token ids alone"
    )


def _stops(value: object) -> object:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return value
    raise PydanticCustomError("stop", "must be a string or a list of strings")


_TOKEN = re.compile(r"0|[1-9][0-9]{0,17}")


def _biases(value: object) -> object:
    if not isinstance(value, dict):
        raise PydanticCustomError("logit_bias", "must be an object of token ids with numbers")
    for token, bias in value.items():
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise PydanticCustomError("logit_bias", "not a token id: {key}", {"key": token})
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise PydanticCustomError(
                "logit_bias", "the value of {key} is not a number from -100 to 100", {"key": token}
            )
    return {int(token): float(bias) for token, bias in value.items()}


class StreamOptions(ForeignBody):
    """What a stream contains besides text."""

    include_usage: bool = False
    """A last chunk with the usage and no choices."""
    continuous_usage_stats: bool = False
    """With include_usage: the usage so far in every chunk."""
    include_obfuscation: bool = False
    """Ignored."""


class CompletionRequest(ForeignBody):
    """A completion. An explicit null means the default; unknown fields are ignored and counted."""

    parts: ClassVar[dict[str, int]] = {"max_request_texts": 1}

    model_config = examples(
        {"prompt": "The history of the town", "max_tokens": 40, "temperature": 0.8},
        {"prompt": "Once upon a time", "stream": True, "seed": 7, "stop": ["\n"]},
    )

    model: ModelName = None
    prompt: Annotated[Prompts, PlainValidator(_prompts), WithJsonSchema(INPUTS_SCHEMA)] = Field(
        default_factory=lambda: [""]
    )
    """Text, which follows the start symbol, or token ids as they are."""
    max_tokens: Annotated[
        int, Field(ge=0), in_schema(maximum="max_completion_tokens"), Integral
    ] = 16
    """0 with echo scores the prompt."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1), Integral] = 0
    """0 and -1 exclude no token."""
    n: Annotated[int, Field(ge=1), in_schema(maximum="max_request_texts"), Integral] = 1
    """Choices for each prompt."""
    stop: Annotated[
        _ShortStrings,
        BeforeValidator(_stops),
        WithJsonSchema({"anyOf": [_SHORT_STRING, {"type": "array", "items": _SHORT_STRING}]}),
    ] = Field(default_factory=list)
    """Strings that end the text; never part of it."""
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63), Integral] = None
    """The same seed gives the same text."""
    logprobs: _Alternatives = None
    """Alternatives for each token; 0 lists only the chosen one, -1 all."""
    echo: bool = False
    """Put the prompt before the text."""
    stream: bool = False
    """Answer with server-sent events."""
    stream_options: StreamOptions | None = None
    best_of: Annotated[int | None, Integral] = None
    """Accepted when it equals n."""
    suffix: Annotated[str | None, in_schema(maxLength=0)] = None
    """Not supported."""
    logit_bias: Annotated[
        dict[int, float],
        PlainValidator(_biases),
        WithJsonSchema(
            {
                "type": "object",
                "propertyNames": {"pattern": f"^({_TOKEN.pattern})$"},
                "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            }
        ),
    ] = Field(default_factory=dict)
    """Numbers to add to the log-probabilities of token ids."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Subtracted from every token generated before."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Subtracted for each time a token was generated."""
    user: str | None = None
    """Ignored."""

    # Not in OpenAI's API; names as in vLLM

    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Minimum share of the largest probability."""
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] = 1.0
    """Factor on log-probabilities of tokens seen before."""
    min_tokens: Annotated[int, Field(ge=0), Integral] = 0
    """Tokens before anything may end the text."""
    ignore_eos: bool = False
    """Never generate the end symbol."""
    stop_token_ids: TokenIds = Field(default_factory=list)
    """Tokens that end the text."""
    include_stop_str_in_output: bool = False
    """Keep the stop string or token in the text."""
    skip_special_tokens: bool = True
    """Omit special symbols from the text."""
    bad_words: _ShortStrings = Field(default_factory=list)
    """Words whose tokens are not generated."""
    allowed_token_ids: Annotated[TokenIds | None, Field(min_length=1)] = None
    """The only tokens generated."""
    prompt_logprobs: _Alternatives = None
    """Alternatives for each token of the prompt; -1 for all."""
    logprob_token_ids: Annotated[TokenIds | None, in_schema(maxItems="max_top_logprobs")] = None
    """The tokens listed as alternatives."""
    return_token_ids: bool = False
    """List the ids of the prompt's and the new tokens. The ids of a text prompt lack the start
    symbol that the text follows: sent back as a prompt they score differently, unless its id is
    put first."""
    return_tokens_as_token_ids: bool = False
    """Write tokens as `token_id:123`."""
    add_special_tokens: bool | None = None
    """Whether a text prompt has a start symbol that is listed and counted; null for a start symbol
    that is neither."""
    truncate_prompt_tokens: Annotated[int | None, Field(ge=1), Integral] = None
    """Tokens that are kept of each prompt."""
    truncation_side: Literal["left", "right"] = "left"
    """The end at which tokens are dropped."""
    timeout_seconds: TimeoutSeconds = None
    priority: Priority = 0

    @model_validator(mode="after")
    def _supported(self) -> Self:
        if self.best_of not in (None, self.n):
            raise PydanticCustomError("best_of", "best_of: must be null or equal to n")
        if "messages" in (self.model_extra or {}) and "prompt" not in self.model_fields_set:
            raise PydanticCustomError(
                "messages", "messages: is for a chat; a base language model continues a prompt"
            )
        if self.suffix:
            raise PydanticCustomError("suffix", "suffix: this server does not support it")
        if self.prompt_logprobs is not None and self.stream:
            raise PydanticCustomError("prompt_logprobs", "prompt_logprobs: not with stream")
        if self.prompt_logprobs is not None and self.logprob_token_ids is not None:
            raise PydanticCustomError(
                "logprob_token_ids", "logprob_token_ids: not with prompt_logprobs"
            )
        if self.min_tokens > self.max_tokens:
            raise PydanticCustomError("min_tokens", "min_tokens: must not be above max_tokens")
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("stream_options", "stream_options: needs stream to be true")
        return self


class Logprobs(BaseModel):
    """Parallel lists; two of them have null for the first token of a prompt."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class PromptLogprob(BaseModel):
    """A token at a position of the prompt. `rank` is 1 for the most probable token there."""

    logprob: float
    rank: int
    decoded_token: str


class Choice(BaseModel):
    """One text. `finish_reason` is null in all but the last chunk of a stream.

    A field that was not requested is null. Only the first chunk of a choice has the prompt's
    tokens; a chunk has no `prompt_logprobs`.
    """

    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"] | None
    stop_reason: str | int | None
    token_ids: list[int] | None
    prompt_token_ids: list[int] | None
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | None = None


class CompletionUsage(BaseModel):
    """Tokens of all prompts, each counted once, and of all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionResponse(BaseModel):
    """A completion, or a chunk, which has `usage` only if `stream_options` request it."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage | None = None
    system_fingerprint: str
