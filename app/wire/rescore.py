"""Bodies of POST /v1/rescore."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from app.wire.fields import (
    Body,
    ModelName,
    Priority,
    TextOrIds,
    TimeoutSeconds,
    Usage,
    examples,
    in_schema,
)
from app.wire.score import Measures

_Weight = Annotated[float, Field(ge=-1e6, le=1e6)]


class Hypothesis(Body):
    """One of several texts to rank."""

    text: str
    """The text; an empty one needs add_eos."""
    prior: Annotated[float | None, Field(ge=-1e12, le=1e12)] = None
    """Its score so far; all hypotheses of an utterance have one, or none."""


def _hypothesis(value: Any) -> Any:
    if not isinstance(value, str | dict):
        raise PydanticCustomError("hypothesis", "must be a string or an object with text")
    return {"text": value} if isinstance(value, str) else value


class Utterance(Body):
    """An n-best list, such as a speech recogniser's for one utterance."""

    hypotheses: Annotated[
        list[
            Annotated[
                Hypothesis, BeforeValidator(_hypothesis, json_schema_input_type=str | Hypothesis)
            ]
        ],
        Field(min_length=1, fail_fast=True),
        in_schema(maxItems="max_request_hypotheses"),
    ]
    """Texts, or texts with their prior scores."""
    context: TextOrIds = ""
    """Text or token ids before each hypothesis, not scored."""

    @model_validator(mode="after")
    def _all_or_none(self) -> Self:
        scored = [hypothesis.prior is not None for hypothesis in self.hypotheses]
        if any(scored) and not all(scored):
            raise PydanticCustomError(
                "prior",
                "hypothesis {index} has no prior and others of its utterance have one",
                {"index": scored.index(False)},
            )
        return self


class RescoreRequest(Body):
    """N-best lists to rank by prior + weight * ln p + length_weight * words."""

    parts: ClassVar[dict[str, int]] = {"max_request_texts": 6, "max_request_hypotheses": 4}

    model_config = examples(
        {
            "utterances": [
                {
                    "hypotheses": [
                        {"text": "I scream for ice cream.", "prior": -4.1},
                        {"text": "Ice cream for I scream.", "prior": -3.9},
                    ]
                }
            ],
            "weight": 0.5,
        },
        {
            "utterances": [
                {"context": "She", "hypotheses": [" go home.", " goes home."]},
                {"context": "They", "hypotheses": [" go home.", " goes home."]},
            ]
        },
    )

    utterances: Annotated[
        list[Utterance],
        Field(min_length=1, fail_fast=True),
        in_schema(maxItems="max_request_texts"),
    ]
    """N-best lists; together at most `max_request_hypotheses` hypotheses, of `max_request_tokens`
    with the contexts."""
    model: ModelName = None
    weight: _Weight = 1.0
    """Weight of the text's log-probability."""
    length_weight: _Weight = 0.0
    """Weight of the number of words."""
    add_eos: bool = False
    """Score the end symbol after each hypothesis."""
    cache: bool = False
    """Mix in how often words have followed each other in the context and the hypothesis so far."""
    detail: Literal["totals", "tokens"] = "totals"
    """`tokens` adds the lists of tokens."""
    timeout_seconds: TimeoutSeconds = None
    priority: Priority = 0


class RescoredHypothesis(Measures):
    """A hypothesis with its score. index: its index in the request's list."""

    index: int
    score: float
    prior: float | None
    eos_scored: bool
    tokens: list[str] | None = None
    token_ids: list[int] | None = None
    offsets: list[tuple[int, int]] | None = None
    logprobs: list[float] | None = None


class RescoredUtterance(BaseModel):
    """An n-best list, best first."""

    index: int
    hypotheses: list[RescoredHypothesis]


class RescoreResponse(BaseModel):
    """Every n-best list, in the order of the request."""

    object: Literal["list"]
    model: str
    data: list[RescoredUtterance]
    usage: Usage
    system_fingerprint: str
