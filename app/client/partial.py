"""Rows that are being collected in a file, so that an interrupted run goes on where it was.

Beside `scores.csv` stand `scores.csv.partial`, the rows so far as lines of JSON, and
`scores.csv.partial.json`, what they were made of. Both are gone when the file is whole.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import orjson

from app.client import rows
from app.client.errors import ClientError

_BLOCK_BYTES = 1 << 16


class Partial:
    """The rows of a file that is not yet whole. Raises ClientError and OSError."""

    def __init__(self, out: Path, made_of: Mapping[str, Any], *, restart: bool = False) -> None:
        self.out, self.made_of = out, dict(made_of)
        self._rows = out.with_name(f"{out.name}.partial")
        self._facts = _facts(out)
        if restart:
            self._remove()
        elif self._facts.exists():
            self._check()
        elif out.exists():
            raise ClientError(f"{out} exists; --restart writes it anew")
        self.next_index = 0
        """The first line that has no row yet."""

    @staticmethod
    def begun(out: Path) -> bool:
        """Whether there are rows of a file that is not yet whole."""
        return _facts(out).exists()

    def __enter__(self) -> Self:
        if not self._facts.exists():
            self._rows.unlink(missing_ok=True)
            new = self._facts.with_name(f"{self._facts.name}.new")
            new.write_bytes(orjson.dumps(self.made_of))
            new.replace(self._facts)
        self._file = self._rows.open("ab+")
        self._cut_torn_line()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, row: rows.Row) -> None:
        """Adds a row."""
        self._file.write(orjson.dumps(row) + b"\n")

    def flush(self) -> None:
        """Hands what was added to the system, so that it outlives this process."""
        self._file.flush()

    def finish(self, *, lists: bool) -> None:
        """Makes the file of the rows."""
        self._file.close()
        whole = self._rows
        if self.out.suffix != ".jsonl":
            whole = self._rows.with_name(f"{self.out.name}.new")
            rows.convert(self._rows, whole, self.out.suffix, lists=lists)
        whole.replace(self.out)
        self._remove()

    def _remove(self) -> None:
        self._rows.unlink(missing_ok=True)
        self._facts.unlink(missing_ok=True)

    def _check(self) -> None:
        before: dict[str, Any] = orjson.loads(self._facts.read_bytes())
        for name in sorted(before.keys() | self.made_of.keys()):
            was, now = before.get(name), self.made_of.get(name)
            if was != now:
                raise ClientError(
                    f"{self._rows} was begun with {name} {was!r}, not {now!r}; give the same, or "
                    "--restart to begin anew"
                )

    def _cut_torn_line(self) -> None:
        """Cuts off a row that was not wholly written, and reads where the last whole one is."""
        end = self._last_feed(self._file.seek(0, os.SEEK_END))
        self._file.truncate(end)
        if end:
            begin = self._last_feed(end - 1)
            self._file.seek(begin)
            self.next_index = orjson.loads(self._file.readline())["index"] + 1
        self._file.seek(0, os.SEEK_END)

    def _last_feed(self, end: int) -> int:
        """The place behind the last line feed before `end`, 0 if there is none."""
        while end > 0:
            begin = max(0, end - _BLOCK_BYTES)
            self._file.seek(begin)
            found = self._file.read(end - begin).rfind(b"\n")
            if found >= 0:
                return begin + found + 1
            end = begin
        return 0


def _facts(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial.json")
