"""Bodies of POST /v1/score."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError

from app.wire.fields import (
    Body,
    Inputs,
    Integral,
    ModelName,
    Priority,
    TextOrIds,
    TimeoutSeconds,
    Usage,
    examples,
    in_schema,
)

_PAIRS = (
    "this endpoint gives the log-probabilities of texts; unlike vLLM's of the same path it does "
    "not compare pairs of texts. Send the text to score as input and the text before it "
    "as context"
)
_OF_PAIRS = ("text_1", "text_2", "data_1", "data_2", "query", "queries", "documents", "items")


class ScoreRequest(Body):
    """Texts to score, independent of each other."""

    parts: ClassVar[dict[str, int]] = {"max_request_texts": 1}
    unknown_fields: ClassVar[dict[str, str]] = dict.fromkeys(_OF_PAIRS, _PAIRS)

    model_config = examples(
        {"input": "The cat sat on the mat."},
        {"input": ["one text", "another"], "detail": "totals"},
        {"input": " I go.", "context": "Where are you going?", "add_eos": True},
        {"input": "The cat sat.", "words": True, "detail": "totals"},
        {"input": "Queequeg left Rokovoko. Nobody in Rokovoko knew.", "cache": True},
        {"input": [52, 148, 371, 4], "ranks": True, "top_logprobs": 3},
    )

    input: Inputs
    """A text, a list of texts, the token ids of a text, or a list of those; at most
    `max_request_texts` of `max_request_tokens` together."""
    model: ModelName = None
    context: TextOrIds = ""
    """Text or token ids before each input, not scored."""
    add_special_tokens: bool = True
    """Put the start symbol before context and input."""
    add_eos: bool = False
    """Score the end symbol after each text."""
    top_logprobs: Annotated[int, Field(ge=0), in_schema(maximum="max_top_logprobs"), Integral] = 0
    """Most probable alternatives listed for each token, at most `max_top_logprobs`."""
    ranks: bool = False
    """List each token's rank, 1 for the most probable."""
    words: bool = False
    """List the surprisal of each word."""
    cache: bool = False
    """Mix in how often words have followed each other in the text and its context so far."""
    detail: Literal["tokens", "totals"] = "tokens"
    """`totals` omits the lists of tokens."""
    timeout_seconds: TimeoutSeconds = None
    priority: Priority = 0

    @model_validator(mode="after")
    def _cache_without_alternatives(self) -> Self:
        if self.cache and (self.top_logprobs or self.ranks):
            raise PydanticCustomError(
                "cache",
                "cache: applies to the tokens of the text; it excludes top_logprobs and ranks",
            )
        return self


class Alternative(BaseModel):
    """A token that was possible at a position."""

    token: str
    token_id: int
    logprob: float


class Word(BaseModel):
    """A run of characters that are not white space, or the end symbol.

    surprisal: minus the sum of its tokens' log-probabilities, in nats; null if it has no token, or
    one without a log-probability. tokens: its range in the lists of tokens, the first index and
    the one after the last.
    """

    word: str
    offsets: tuple[int, int]
    surprisal: float | None
    tokens: tuple[int, int]


class Measures(BaseModel):
    """Sums and measures computed from them, with natural logarithms; null where a count is 0."""

    logprob_sum: float
    token_count: int
    unknown_count: int
    word_count: int
    byte_count: int
    perplexity: float | None
    word_perplexity: float | None
    bits_per_byte: float | None
    fluency: float | None = None


class TextScore(Measures):
    """One text. The lists of tokens are parallel; offsets count characters of the input.

    text: the text of token ids, to which the offsets refer. A first token with nothing before it
    has null in `logprobs`, `ranks` and `top_logprobs`, and is not counted.
    """

    index: int
    eos_scored: bool
    text: str | None = None
    tokens: list[str] | None = None
    token_ids: list[int] | None = None
    logprobs: list[float | None] | None = None
    ranks: list[int | None] | None = None
    offsets: list[tuple[int, int]] | None = None
    top_logprobs: list[list[Alternative] | None] | None = None
    words: list[Word] | None = None


class ScoreResponse(BaseModel):
    """Every text's score, in the order of the input, and the measures of all texts."""

    object: Literal["list"]
    model: str
    data: list[TextScore]
    totals: Measures
    usage: Usage
    system_fingerprint: str
