"""Rows that are being collected in a file, so that an interrupted run goes on where it was.

Beside `scores.csv` stand `scores.csv.partial`, the rows so far as lines of JSON, and
`scores.csv.partial.json`, what they were made of, of which lines, and how many bytes they are; rows
beyond those bytes are cut off, as nothing says which lines they are of. Both are gone when the file
is whole. The first is locked while a command writes it. Where `scores.csv` is a link to another
file, they stand beside that one, which is written.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import orjson

from app.client import rows
from app.client.errors import ClientError

if sys.platform != "win32":
    import fcntl

_BLOCK_BYTES = 1 << 16
_READ = "read"
_ROWS_BYTES = "rows_bytes"


class Read(NamedTuple):
    """The first lines of an input, by their number and the SHA-256 of them all."""

    lines: int
    sha256: str


class Partial:
    """The rows of a file that is not yet whole. Entering raises ClientError and OSError."""

    def __init__(self, out: Path, made_of: Mapping[str, Any], *, restart: bool = False) -> None:
        self.made_of, self.restart = dict(made_of), restart
        self.out, self._rows, self._facts, self._new, self._new_facts = self.files(out)
        self.next_index = 0
        """The first line that has no row yet."""
        self.read: Read | None = None
        """What had been read of the input when the rows were handed over last, if any were."""
        self._known_bytes: int | None = None
        """Length of the rows then; None if it was not written down, as older versions did not."""

    @staticmethod
    def files(out: Path) -> tuple[Path, ...]:
        """What is written: the whole file, its rows, what they are made of, and the next of two."""
        target = rows.target_of(out)
        ends = ("", ".partial", ".partial.json", ".new", ".partial.json.new")
        return tuple(target.with_name(target.name + end) for end in ends)

    @classmethod
    def begun(cls, out: Path) -> bool:
        """Whether there are rows of a file that is not yet whole."""
        return cls.files(out)[2].exists()

    def __enter__(self) -> Self:
        self._file = _locked(self._rows)
        try:
            if self.restart or not self._facts.exists():
                self._begin()
            else:
                self._check()
            self._cut()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # nothing is left of a run that failed before its first row; at an interrupt it is kept
        failed = kind is not None and issubclass(kind, Exception)
        empty = failed and not self._file.closed and not self._file.tell()
        if sys.platform == "win32":  # what is open cannot be removed there
            self._file.close()
        if empty:
            self._remove()
        self._file.close()

    def write(self, row: rows.Row) -> None:
        """Adds a row."""
        self._file.write(rows.json_line(row))

    def flush(self, read: Read) -> None:
        """Hands what was added to the system, so that it outlives this process.

        read: of the input so far, all lines that have a row among them.
        """
        self._file.flush()
        self.read = read
        self._state()

    def finish(self, columns: dict[str, str]) -> None:
        """Makes the file of the rows. columns: those of a table (`rows.columns_of`)."""
        self._file.flush()
        if sys.platform == "win32":  # what is open cannot be moved there
            self._file.close()
        whole = self._rows
        if self.out.suffix != ".jsonl":
            whole = self._new
            rows.convert(self._rows, whole, self.out.suffix, columns)
        whole.replace(self.out)
        self._remove()

    def _remove(self) -> None:
        self._rows.unlink(missing_ok=True)
        self._facts.unlink(missing_ok=True)

    def _state(self) -> None:
        """Writes what the rows are made of, all of which the system has."""
        read = None if self.read is None else self.read._asdict()
        self._new_facts.write_bytes(
            orjson.dumps({**self.made_of, _READ: read, _ROWS_BYTES: self._file.tell()})
        )
        self._new_facts.replace(self._facts)

    def _begin(self) -> None:
        if not self.restart:
            if self.out.exists():
                if not self._file.tell():
                    self._rows.unlink()
                raise ClientError(f"{self.out} exists; --restart writes it anew")
            if self._file.tell():
                raise ClientError(
                    f"{self._rows} exists, and no {self._facts.name} says what it is; --restart "
                    "writes it anew"
                )
        self._file.seek(0)
        self._file.truncate()
        self._state()

    def _check(self) -> None:
        try:
            before: dict[str, Any] = orjson.loads(self._facts.read_bytes())
            read = before.pop(_READ, None)
            self.read = None if read is None else Read(**read)
            known = before.pop(_ROWS_BYTES, None if read else 0)
            if known is not None and not (type(known) is int and known >= 0):
                raise ValueError(known)
            self._known_bytes = known
        except (ValueError, TypeError, AttributeError):
            raise _damaged(self._facts) from None
        for name in sorted(before.keys() | self.made_of.keys()):
            was, now = before.get(name), self.made_of.get(name)
            if was != now:
                raise ClientError(
                    f"{self._rows} was begun with {name} {was!r}, not {now!r}; give the same, or "
                    "--restart to begin anew"
                )

    def _cut(self) -> None:
        """Cuts off rows of unknown lines and one not wholly written; reads where the last one is.

        A full buffer reaches the file before it is known which lines its rows are of.
        """
        end = self._file.seek(0, os.SEEK_END)
        if self._known_bytes is not None:
            end = min(end, self._known_bytes)
        end = self._last_feed(end)
        self._file.truncate(end)
        if end:
            begin = self._last_feed(end - 1)
            self._file.seek(begin)
            try:
                self.next_index = orjson.loads(self._file.readline())["index"] + 1
            except (ValueError, TypeError, KeyError):
                raise _damaged(self._rows) from None
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


def _locked(path: Path) -> IO[bytes]:
    """A file to add to, for this process alone where there are such locks."""
    file = path.open("ab+")
    if sys.platform == "win32":
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ClientError(f"{path}: another command is writing it") from None
    if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
        return file
    file.close()  # whoever had it has just made the whole file of it
    return _locked(path)


def _damaged(path: Path) -> ClientError:
    return ClientError(f"{path} is damaged; --restart begins anew")
