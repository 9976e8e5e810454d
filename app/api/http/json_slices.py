"""Parses a long JSON object in slices, so that other threads may run between them.

A parser written in C keeps the interpreter to itself until it has read all it was given. Here it is
given about 256 KiB at a time: some entries of the outermost object, or of a long list or object in
it, or a piece of a long string.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from pydantic_core import from_json

SLICE_BYTES = 1 << 18
"""So many are parsed in about 1 ms, of short numbers in 3."""
_DEEPEST = 200
"""As pydantic's parser. Its limit holds for a slice, which is given to it as deep as it is."""
_SPACE = re.compile(rb"[ \t\n\r]*+")
_SCALAR = re.compile(rb"[^ \t\n\r,\[\]{}\"]++")
_CHARACTERS = re.compile(
    rb'(?:[^"\\]++|\\u[dD][89abAB][^"\\]{2}\\u[^"\\]{4}|\\u(?![dD][89abAB])[^"\\]{4}|\\[^u])*+',
    re.DOTALL,
)
"""Whole characters of a string: an escaped surrogate pair is one."""
_LIST, _LIST_END, _OBJECT, _OBJECT_END, _QUOTE, _COMMA, _COLON = b'[]{}",:'


class UnwantedError(Exception):
    """Nobody waits for the value any more."""


def load(
    raw: bytes, slice_bytes: int = SLICE_BYTES, wanted: Callable[[], bool] = lambda: True
) -> Any:
    """The value of a JSON text that is an object or a list, as `pydantic_core.from_json` has it.

    wanted: asked before each slice. Raises ValueError for what is not JSON, and UnwantedError.
    """
    text = _Text(raw, slice_bytes, wanted)
    value = text.value(0)
    text.skip_space()
    if text.position < len(raw):
        raise ValueError(f"trailing characters at byte {text.position + 1}")
    return value


class _Window:
    """The brackets and commas outside of strings in a part of a JSON text.

    The part begins at the byte `start` of the text, inside of `depth` lists and objects.
    """

    def __init__(self, part: bytes, start: int, depth: int) -> None:
        self.start, self.end = start, start + len(part)
        if b"\\" in part:  # quotes that end no string
            part = part.replace(rb"\\", b"__").replace(rb"\"", b"__")
        codes = np.frombuffer(part, np.uint8)
        outside = np.cumsum(codes == _QUOTE, dtype=np.uint8) & 1 == 0
        steps = ((codes == _LIST) | (codes == _OBJECT)).astype(np.int8)
        steps -= (codes == _LIST_END) | (codes == _OBJECT_END)
        commas = codes == _COMMA
        self._marks = np.flatnonzero(((steps != 0) | commas) & outside)
        depths = depth + np.cumsum(steps[self._marks], dtype=np.int32)
        self._negative_lowest = -np.minimum.accumulate(depths)
        # those of lists and objects that go on after the part: the deeper, the later
        last = commas[self._marks] & (depths == np.minimum.accumulate(depths[::-1])[::-1])
        self._commas, self._comma_depths = self._marks[last], depths[last]

    def cut(self, position: int, depth: int) -> int | None:
        """Where a list or object that is open at a position ends, or else its last comma is.

        It must be open at the part's start too, or go on after its end.
        """
        first = position - self.start
        ended = np.searchsorted(self._negative_lowest, -depth, "right")
        if ended < len(self._marks) and self._marks[ended] >= first:
            return self.start + int(self._marks[ended])
        comma = np.searchsorted(self._comma_depths, depth, "right") - 1
        if comma < 0 or self._comma_depths[comma] < depth or self._commas[comma] < first:
            return None
        return self.start + int(self._commas[comma])


class _Text:
    """A JSON text that is read from its beginning to its end."""

    def __init__(self, raw: bytes, slice_bytes: int, wanted: Callable[[], bool]) -> None:
        self._raw, self._slice_bytes, self._wanted = raw, slice_bytes, wanted
        self.position = 0
        self._window = _Window(b"", 0, 0)

    def value(self, depth: int) -> Any:
        """The next value, inside so many lists and objects."""
        self.skip_space()
        first = self._next()
        if first in (_LIST, _OBJECT):
            return self._list(depth + 1) if first == _LIST else self._object(depth + 1)
        if first == _QUOTE:
            return self._string()
        scalar = _SCALAR.match(self._raw, self.position)
        if scalar is None:
            raise self._error("expected value")
        value = self._parse(scalar[0])
        self.position = scalar.end()
        return value

    def skip_space(self) -> None:
        """Goes to the next byte that is not white space."""
        space = _SPACE.match(self._raw, self.position)
        assert space is not None
        self.position = space.end()

    def _list(self, depth: int) -> list[Any]:
        self.position += 1
        values: list[Any] = []
        ended = self._ends_empty(depth, _LIST_END)
        while not ended:
            if (cut := self._cut(depth)) is None:
                values.append(self.value(depth))
                ended = self._after_entry(_LIST_END)
            else:
                new, ended = self._entries(cut, depth, b"[", b"]", first=not values)
                values += new
        return values

    def _object(self, depth: int) -> dict[str, Any]:
        self.position += 1
        members: dict[str, Any] = {}
        ended = self._ends_empty(depth, _OBJECT_END)
        while not ended:
            if (cut := self._cut(depth)) is None:
                self.skip_space()
                if self._next() != _QUOTE:
                    raise self._error("key must be a string")
                name = self._string()
                self.skip_space()
                if self._next() != _COLON:
                    raise self._error("expected `:`")
                self.position += 1
                members[name] = self.value(depth)
                ended = self._after_entry(_OBJECT_END)
            else:
                new, ended = self._entries(cut, depth, b"{", b"}", first=not members)
                members |= new
        return members

    def _cut(self, depth: int) -> int | None:
        """Where the entries that the window holds end: at the end of the list or object, or a
        comma. None if it holds no complete entry.

        A window is used until it is passed, so that no byte is scanned twice.
        """
        if self.position >= self._window.end:
            part = self._raw[self.position : self.position + self._slice_bytes]
            self._window = _Window(part, self.position, depth)
        return self._window.cut(self.position, depth)

    def _entries(
        self, cut: int, depth: int, opening: bytes, closing: bytes, *, first: bool
    ) -> tuple[Any, bool]:
        """Entries up to a cut, and whether the list or object ends there."""
        part, last = self._raw[self.position : cut], self._raw[cut]
        ended = last != _COMMA
        if ended and last != closing[0]:
            self.position = cut
            raise self._error(f"expected `,` or `{closing.decode()}`")
        if not part.strip(b" \t\n\r") and not (ended and first):
            raise self._error("trailing comma" if ended else "expected value")
        before, after = b"[" * (depth - 1) + opening, closing + b"]" * (depth - 1)
        value = self._parse(before + part + after)
        for _ in range(depth - 1):
            (value,) = value
        self.position = cut + 1
        return value, ended

    def _ends_empty(self, depth: int, end: int) -> bool:
        """Reads the end of a list or object without entries; whether it is there."""
        if self._cut(depth) is not None:
            return False
        self.skip_space()
        empty = self._next() == end
        if depth > _DEEPEST and not empty:
            raise self._error("recursion limit exceeded")
        self.position += empty
        return empty

    def _after_entry(self, end: int) -> bool:
        """Reads what follows an entry; whether it was the last."""
        self.skip_space()
        found = self._next()
        if found not in (_COMMA, end):
            raise self._error(f"expected `,` or `{chr(end)}`")
        self.position += 1
        return found == end

    def _string(self) -> str:
        self.position += 1
        pieces: list[str] = []
        while self._next() != _QUOTE:
            first, limit = self.position, self.position + self._slice_bytes
            found = _CHARACTERS.match(self._raw, first, limit)
            assert found is not None
            end = found.end()
            if end == limit:
                while end < len(self._raw) and self._raw[end] & 0xC0 == 0x80:
                    end -= 1  # not within a character
            if end <= first:
                raise self._error("invalid hex escape")
            pieces.append(self._parse(b'"' + self._raw[first:end] + b'"'))
            self.position = end
        self.position += 1
        return "".join(pieces)

    def _next(self) -> int:
        if self.position >= len(self._raw):
            raise self._error("EOF while parsing a value")
        return self._raw[self.position]

    def _parse(self, part: bytes) -> Any:
        if not self._wanted():
            raise UnwantedError
        try:
            return from_json(part)
        except ValueError as error:
            raise self._error(str(error).partition(" at line ")[0]) from None

    def _error(self, reason: str) -> ValueError:
        return ValueError(f"Invalid JSON: {reason} after byte {self.position}")
