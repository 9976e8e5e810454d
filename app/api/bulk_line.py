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


def custom_id_of(raw: bytes) -> str | None:
    """The `custom_id` of a line that is wrong, if it can be read."""
    try:
        # not orjson: half of a surrogate pair in a text must not hide whose text it is
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    name = line.get("custom_id") if isinstance(line, dict) else None
    return name.encode(errors="backslashreplace").decode() if isinstance(name, str) else None
