"""Bodies of POST /v1/next."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BaseModel, Field

from app.wire.fields import (
    Body,
    Integral,
    ModelName,
    Priority,
    Strings,
    TextOrIds,
    TimeoutSeconds,
    Usage,
    examples,
    in_schema,
)


class NextRequest(Body):
    """A text to continue: the most probable tokens are listed, or candidates are ranked."""

    parts: ClassVar[dict[str, int]] = {"max_request_texts": 1}

    model_config = examples(
        {"input": "The capital of France is", "top_k": 5},
        {"input": "Queequeg left Rokovoko. Nobody in", "top_k": 5, "cache": True},
        {"input": "She", "candidates": [" is", " are", " have been"]},
    )

    input: TextOrIds
    """The text so far, or its token ids; empty for the beginning of a text."""
    top_k: Annotated[int, Field(ge=1), in_schema(maximum="max_top_k"), Integral] = 10
    """How many tokens to list."""
    candidates: Annotated[
        Strings | None, Field(min_length=1), in_schema(maxItems="max_request_texts")
    ] = None
    """Continuations to rank instead, each of any length."""
    cache: bool = False
    """Mix in how often words have followed each other in the text so far."""
    model: ModelName = None
    timeout_seconds: TimeoutSeconds = None
    priority: Priority = 0


class NextToken(BaseModel):
    """A continuation, its natural log-probability and its probability."""

    token: str
    token_ids: list[int]
    logprob: float
    probability: float


class NextResponse(BaseModel):
    """Continuations, most probable first."""

    model: str
    data: list[NextToken]
    usage: Usage
    system_fingerprint: str
