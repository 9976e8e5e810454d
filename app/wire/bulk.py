"""Lines of POST /v1/score/stream."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from app.wire.fields import Body, Priority, examples
from app.wire.models import ErrorDetail
from app.wire.score import ScoreRequest, ScoreResponse

CustomId = Annotated[str | None, Field(description="Returned with the answer.")]


def _body(value: object) -> object:
    if not isinstance(value, dict) or "custom_id" in value:
        raise PydanticCustomError("body", "must be a body of /v1/score")
    return value


class BatchLine(Body):
    """OpenAI's batch line around a body of POST /v1/score."""

    model_config = examples(
        {
            "custom_id": "a-18",
            "method": "POST",
            "url": "/v1/score",
            "body": {"input": ["one text", "another"]},
        }
    )

    custom_id: CustomId = None
    method: Literal["POST"] = "POST"
    url: Literal["/v1/score"] = "/v1/score"
    body: Annotated[dict[str, Any], PlainValidator(_body, json_schema_input_type=ScoreRequest)]


class BulkLine(ScoreRequest):
    """A body of POST /v1/score on a line, or OpenAI's batch line around one."""

    model_config = examples(
        {"custom_id": "a-17", "input": "The cat sat on the mat.", "detail": "totals"}
    )

    custom_id: CustomId = None
    priority: Priority = 1

    @model_validator(mode="before")
    @classmethod
    def _unwrap(cls, value: Any) -> Any:
        """Replaces a batch line by the body in it."""
        if not isinstance(value, dict) or "body" not in value:
            return value
        line = BatchLine.model_validate(value)
        return {"custom_id": line.custom_id, **line.body}


class BulkScore(ScoreResponse):
    """A line's answer: that of POST /v1/score, and the line that it belongs to.

    `index` is the line's number in the body, from 0; blank lines count.
    """

    index: int
    custom_id: str | None


class BulkError(BaseModel):
    """The error of a line."""

    index: int
    custom_id: str | None
    error: ErrorDetail


class BulkSummary(BaseModel):
    """The last line. An answer without it is incomplete.

    lines: lines answered, `errors` of them with an error. tokens: the sum of their `usage`.
    """

    object: Literal["summary"]
    lines: int
    errors: int
    tokens: int
