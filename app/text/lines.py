"""Bytes that arrive in parts, as lines of bounded length."""

from __future__ import annotations


class Lines:
    """Cuts at line feeds. What is held between two parts is at most one line.

    limit: bytes of a line; of a longer one nothing is kept but that there was one.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._begun = bytearray()
        self._too_long = False

    def feed(self, part: bytes) -> list[bytes | None]:
        """The lines that end in this part, without their line feeds; None for one too long."""
        *ended, rest = part.split(b"\n")
        if not ended:
            self._extend(rest)
            return []
        self._extend(ended[0])
        lines: list[bytes | None] = [self._taken()]
        limit = self.limit
        lines += [line if len(line) <= limit else None for line in ended[1:]]
        self._extend(rest)
        return lines

    def end(self) -> list[bytes | None]:
        """The last line, if no line feed ended it."""
        return [self._taken()] if self._begun or self._too_long else []

    def _extend(self, part: bytes) -> None:
        if self._too_long or len(self._begun) + len(part) > self.limit:
            self._too_long = True
            self._begun.clear()
        else:
            self._begun += part

    def _taken(self) -> bytes | None:
        line = None if self._too_long else bytes(self._begun)
        self._begun.clear()
        self._too_long = False
        return line


_BREAKS = tuple((char.encode(), b"\\u%04x" % ord(char)) for char in "\u0085\u2028\u2029")


def on_one_line(json: bytes) -> bytes:
    """JSON without the line breaks that it may hold as they are, which are escaped.

    Python's `str.splitlines`, and clients that use it, break lines at U+0085, U+2028 and U+2029.
    In UTF-8, whole characters.
    """
    for char, escape in _BREAKS:
        json = json.replace(char, escape)
    return json
