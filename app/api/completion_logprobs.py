"""The legacy `logprobs` object, as JSON that grows: a list of millions takes its text alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import orjson


@dataclass(frozen=True, slots=True)
class Entry:
    """A token in the lists; `offset` counts characters of the choice's text."""

    token: int
    name: str
    logprob: np.float32 | None
    top: dict[str, np.float32] | None
    offset: int


@dataclass(slots=True)
class Columns:
    """Four parallel lists, each without its brackets."""

    tokens: bytearray = field(default_factory=bytearray)
    token_logprobs: bytearray = field(default_factory=bytearray)
    top_logprobs: bytearray = field(default_factory=bytearray)
    text_offset: bytearray = field(default_factory=bytearray)

    def add(self, entries: Sequence[Entry]) -> None:
        """Puts entries behind those that are there."""
        if entries:
            _append(self.tokens, [entry.name for entry in entries])
            _append(self.token_logprobs, [entry.logprob for entry in entries])
            _append(self.top_logprobs, [entry.top for entry in entries])
            _append(self.text_offset, [entry.offset for entry in entries])

    def extend(self, other: Columns) -> None:
        """Puts another's entries behind those that are there."""
        for name in Columns.__slots__:
            own, more = getattr(self, name), getattr(other, name)
            own += b"," + more if own and more else more


def written(*columns: Columns) -> list[bytes | bytearray]:
    """The object with the lists of all, one behind the other, in parts."""
    parts: list[bytes | bytearray] = []
    for name in Columns.__slots__:
        parts.append((b',"' if parts else b'{"') + name.encode() + b'":[')
        lists = [found for each in columns if (found := getattr(each, name))]
        for index, found in enumerate(lists):
            parts += [b",", found] if index else [found]
        parts.append(b"]")
    return [*parts, b"}"]


def _append(column: bytearray, values: list[object]) -> None:
    added = orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
    column += b"," + added if column else added
