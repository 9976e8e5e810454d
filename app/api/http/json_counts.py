"""Counts the values of JSON before it is parsed, so that a hostile body is never built.

Parsing makes an object of each value, at up to 300 bytes for one of the body, and keeps the
interpreter to itself all the while.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

_QUOTE, _COMMA, _LIST, _OBJECT = b'",[{'
_DIGITS = 512
"""A longer number takes time with the square of its length to read, at 4,000 digits 50 us."""


@dataclass(slots=True)
class JsonCounts:
    """What a JSON text holds outside of its strings, fed in parts that may be cut anywhere.

    A part of 256 KiB takes about 1 ms. parts: strings (names among them), lists and objects.
    commas: with `parts`, at least as many as there are values. Of a text that is not JSON the
    numbers mean nothing, and the parser stops where the first mistake is.
    """

    parts: int = 0
    commas: int = 0
    long_number: bool = False
    """Whether a number has more than 512 digits; one that has 2,048 is always noticed."""
    _inside: bool = False
    """Whether a string goes on in the next part."""
    _rest: bytes = field(default=b"")
    """A backslash at the end of a part, which belongs to the character after it."""

    def feed(self, part: bytes) -> None:
        """Counts the next part."""
        part = self._rest + part
        odd = (len(part) - len(part.rstrip(b"\\"))) % 2
        self._rest, part = part[len(part) - odd :], part[: len(part) - odd]
        if b"\\" in part:  # quotes that end no string
            part = part.replace(rb"\\", b"").replace(rb"\"", b"")
        if self._inside and b'"' not in part:
            return
        codes = np.frombuffer(part, np.uint8)
        quotes = codes == _QUOTE
        inside = np.cumsum(quotes, dtype=np.uint8) + np.uint8(self._inside) & 1 == 1
        self.parts += int(np.count_nonzero(quotes & inside))  # the quotes that begin a string
        if len(codes):
            self._inside = bool(inside[-1])
        outside = codes[~inside]
        self.commas += int(np.count_nonzero(outside == _COMMA))
        self.parts += int(np.count_nonzero((outside == _LIST) | (outside == _OBJECT)))
        whole = outside[: len(outside) // _DIGITS * _DIGITS].reshape(-1, _DIGITS)
        self.long_number |= bool((whole - np.uint8(ord("0")) < 10).all(1).any())
