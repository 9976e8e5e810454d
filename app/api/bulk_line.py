"""A line of NDJSON while it is worked on."""

from __future__ import annotations

import json
from dataclasses import dataclass

from app.wire.bulk import BulkLine


@dataclass(slots=True, eq=False)
class Line:
    """A line in work. weight: bytes, times the list entries that a token has in the answer."""

    index: int
    custom_id: str | None = None
    body: BulkLine | None = None
    weight: int = 0
    held: int = 0
    """Bytes of a line that counts among the open bodies until its answer is sent."""
    streamed: bool = False
    """Whether the answer is too long to be held: it is written while it is computed."""
    answer: bytes | None = None

    @property
    def names(self) -> dict[str, object]:
        """The first members of the answer."""
        return {"index": self.index, "custom_id": self.custom_id}

    @property
    def request(self) -> BulkLine:
        """The line's body, once it is known to be one."""
        assert self.body is not None
        return self.body

    def kind(self, alternatives: int) -> tuple[object, ...]:
        """Equal for lines that are scored together: they differ in their texts and in `detail`.

        alternatives: those wanted for each token.
        """
        body = self.request
        # an empty text is often an error, which would cost the lines beside it a second try
        alone = self.index if not all(body.input) and not body.add_eos else None
        return (
            body.model,
            body.context if isinstance(body.context, str) else tuple(body.context),
            body.add_special_tokens,
            body.add_eos,
            alternatives,
            body.cache,
            body.priority > 0,
            body.timeout_seconds,
            alone,
        )


def custom_id_of(raw: bytes) -> str | None:
    """The `custom_id` of a line that is wrong, if it can be read."""
    try:
        # not orjson: half of a surrogate pair in a text must not hide whose text it is
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    name = line.get("custom_id") if isinstance(line, dict) else None
    return name.encode(errors="backslashreplace").decode() if isinstance(name, str) else None
