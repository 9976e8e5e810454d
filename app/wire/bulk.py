"""Lines of POST /v1/score/stream."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from app.wire.models import ErrorDetail
from app.wire.score import ScoreRequest, ScoreResponse

_ENVELOPE = frozenset({"custom_id", "method", "url", "body"})


class BulkLine(ScoreRequest):
    """A body of POST /v1/score on a line, or OpenAI's batch line around one."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"custom_id": "a-17", "input": "The cat sat on the mat.", "detail": "totals"},
                {
                    "custom_id": "a-18",
                    "method": "POST",
                    "url": "/v1/score",
                    "body": {"input": ["one text", "another"]},
                },
            ]
        }
    )

    custom_id: Annotated[str | None, Field(description="Comes back with the answer; not read.")] = (
        None
    )

    @model_validator(mode="before")
    @classmethod
    def _opened(cls, value: Any) -> Any:
        """What a batch line holds, as if it were the line."""
        if not isinstance(value, dict) or "body" not in value:
            return value
        body = value["body"]
        for name in value:
            if name not in _ENVELOPE:
                raise PydanticCustomError("unknown_field", "{name}: unknown field", {"name": name})
        if value.get("method", "POST") != "POST":
            raise PydanticCustomError("method", "method: must be POST")
        if value.get("url", "/v1/score") != "/v1/score":
            raise PydanticCustomError("url", "url: must be /v1/score")
        if not isinstance(body, dict) or "custom_id" in body:
            raise PydanticCustomError("body", "body: must be a body of /v1/score")
        return {"custom_id": value.get("custom_id"), **body}


class BulkScore(ScoreResponse):
    """A line's answer: that of POST /v1/score, and the line that it belongs to.

    `index` is the line's place in the body, from 0, blank lines counted.
    """

    index: int
    custom_id: str | None


class BulkError(BaseModel):
    """What is wrong with a line."""

    index: int
    custom_id: str | None
    error: ErrorDetail


class BulkSummary(BaseModel):
    """The last line. Without it the answer was cut off.

    lines: lines answered, `errors` of them with an error. tokens: `usage` of all together.
    """

    object: Literal["summary"]
    lines: int
    errors: int
    tokens: int
