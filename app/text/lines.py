"""Bytes that arrive in parts, as lines of bounded length."""

from __future__ import annotations


class Lines:
    """Cuts bytes at line feeds. Between two parts it holds at most one line.

    limit: bytes of a line; of a longer line only the fact that it was dropped is kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._begun = bytearray()
        self._dropped = False

    @property
    def held(self) -> int:
        """Bytes of the line that has begun."""
        return len(self._begun)

    def feed(self, part: bytes) -> list[bytes | None]:
        """The lines that end in this part, without their line feeds; None for a dropped one."""
        *ended, rest = part.split(b"\n")
        if not ended:
            self._extend(rest)
            return []
        self._extend(ended[0])
        lines: list[bytes | None] = [self._take()]
        limit = self.limit
        lines += [line if len(line) <= limit else None for line in ended[1:]]
        self._extend(rest)
        return lines

    def end(self) -> list[bytes | None]:
        """The last line, if no line feed ended it."""
        return [self._take()] if self._begun or self._dropped else []

    def drop(self) -> None:
        """Forgets the line that has begun, and what is still to come of it."""
        self._dropped = True
        self._begun.clear()

    def _extend(self, part: bytes) -> None:
        if self._dropped or len(self._begun) + len(part) > self.limit:
            self.drop()
        else:
            self._begun += part

    def _take(self) -> bytes | None:
        line = None if self._dropped else bytes(self._begun)
        self._begun.clear()
        self._dropped = False
        return line


_BREAKS = tuple((char.encode(), b"\\u%04x" % ord(char)) for char in "\u0085\u2028\u2029")


def on_one_line(json: bytes) -> bytes:
    """JSON in UTF-8, with the line breaks escaped that JSON allows inside strings.

    Python's `str.splitlines`, and clients that use it, break lines at U+0085, U+2028 and U+2029.
    The bytes must end with a complete character.
    """
    for char, escape in _BREAKS:
        json = json.replace(char, escape)
    return json
