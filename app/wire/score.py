"""Bodies of POST /v1/score."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.wire.fields import Body, Texts, Usage


class ScoreRequest(Body):
    """Texts whose tokens are wanted with their log-probabilities, independent of each other."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"input": "The cat sat on the mat."},
                {"input": ["one text", "another"], "detail": "totals"},
                {"input": " I go.", "context": "Where are you going?", "add_eos": True},
            ]
        }
    )

    input: Annotated[Texts, Field(description="A text, or a list of texts.")]
    model: Annotated[str | None, Field(description="A name from /v1/models.")] = None
    context: Annotated[str, Field(description="Text before each input, given and not scored.")] = ""
    add_eos: Annotated[bool, Field(description="Score the end symbol behind each text.")] = False
    top_logprobs: Annotated[
        int, Field(ge=0, description="Most probable alternatives listed for each token.")
    ] = 0
    detail: Annotated[
        Literal["tokens", "totals"], Field(description="`totals` leaves the lists out.")
    ] = "tokens"


class Alternative(BaseModel):
    """A token that could have stood in a place."""

    token: str
    token_id: int
    logprob: float


class Measures(BaseModel):
    """Sums and what follows from them. Logarithms are natural; a measure of no count is null."""

    logprob_sum: float
    token_count: int
    unknown_count: int
    word_count: int
    byte_count: int
    perplexity: float | None
    word_perplexity: float | None
    bits_per_byte: float | None


class TextScore(Measures):
    """One text. The lists are parallel; `offsets` count characters of the input."""

    index: int
    eos_scored: bool
    tokens: list[str] | None = None
    token_ids: list[int] | None = None
    logprobs: list[float] | None = None
    offsets: list[tuple[int, int]] | None = None
    top_logprobs: list[list[Alternative]] | None = None


class ScoreResponse(BaseModel):
    """Every text's score, in the order of the input, and the measures of all together."""

    object: Literal["list"]
    model: str
    data: list[TextScore]
    totals: Measures
    usage: Usage
    system_fingerprint: str
