"""OpenAI's legacy `logprobs` object, kept as JSON text: a list of millions needs no more memory."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from app.api.json_stream import Part, elements, extend, object_of_arrays


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
    """The elements of four parallel arrays, without their brackets."""

    tokens: bytearray = field(default_factory=bytearray)
    token_logprobs: bytearray = field(default_factory=bytearray)
    top_logprobs: bytearray = field(default_factory=bytearray)
    text_offset: bytearray = field(default_factory=bytearray)

    def add(self, entries: list[Entry]) -> None:
        """Appends entries."""
        if entries:
            extend(self.tokens, elements([entry.name for entry in entries]))
            extend(self.token_logprobs, elements([entry.logprob for entry in entries]))
            extend(self.top_logprobs, elements([entry.top for entry in entries]))
            extend(self.text_offset, elements([entry.offset for entry in entries]))

    def extend(self, other: Columns) -> None:
        """Appends the entries of another."""
        for name in Columns.__slots__:
            extend(getattr(self, name), getattr(other, name))


def logprobs_object(*columns: Columns) -> list[Part]:
    """The object with the entries of all, in order, in parts."""
    return object_of_arrays(
        {name: [getattr(each, name) for each in columns] for name in Columns.__slots__}
    )
