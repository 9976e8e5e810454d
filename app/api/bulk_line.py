"""A line of NDJSON while it is worked on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.wire.bulk import BulkLine

if TYPE_CHECKING:
    from app.api.http.open_bodies import OpenBody


@dataclass(slots=True, eq=False)
class Line:
    """A line in work. weight: bytes, times the list entries that a token has in the answer."""

    index: int
    custom_id: str | None = None
    body: BulkLine | None = None
    weight: int = 0
    held: int = 0
    """Bytes that a long line counts among the open bodies until its answer is sent."""
    deadline: float | None = None
    """When its time is over, by the event loop's clock."""
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


class HeldLines:
    """What the long lines of a body count among all open bodies: those in work, and the begun one.

    Its methods raise OverloadError, changing nothing, if all open bodies are too long with them.
    """

    def __init__(self, body: OpenBody) -> None:
        self.body = body
        self._lines = self._begun = 0

    def begin(self, count: int) -> None:
        """Counts the bytes of the line that is not complete yet; 0 if there is none.

        Raises OverloadError.
        """
        self.body.hold(self._lines + count)
        self._begun = count

    def complete(self) -> None:
        """Says that the line is complete; it counts until the next change."""
        self._begun = 0

    def add(self, line: Line, count: int) -> None:
        """Counts more for a line in work."""
        self.body.hold(self._lines + count + self._begun)
        self._lines += count
        line.held += count

    def release(self, line: Line) -> None:
        """Counts nothing for it any more."""
        self.add(line, -line.held)


def custom_id_of(raw: bytes) -> str | None:
    """The `custom_id` of a line that is wrong, if it can be read."""
    try:
        # not orjson: half of a surrogate pair in a text must not hide whose text it is
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    name = line.get("custom_id") if isinstance(line, dict) else None
    return name.encode(errors="backslashreplace").decode() if isinstance(name, str) else None
