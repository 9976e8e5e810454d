"""Collects rows in a file from which an interrupted run can be resumed.

Beside `scores.csv` there are `scores.csv.partial`, the rows so far as lines of JSON, and
`scores.csv.partial.json`, which says how and from which lines they were made and how many bytes
they have; further bytes are cut off, since their lines are unknown. Both are removed when the file
is complete. The first is locked while a command writes it. If `scores.csv` is a link, all of them
are beside its target.
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
    """The beginning of an input: the number of its lines and their SHA-256."""

    lines: int
    sha256: str


class Partial:
    """The rows of an incomplete file. Entering raises ClientError and OSError."""

    def __init__(self, out: Path, provenance: Mapping[str, Any], *, restart: bool = False) -> None:
        self.provenance, self.restart = dict(provenance), restart
        self.out, self._rows, self._facts, self._new, self._new_facts = self.files(out)
        self.next_index = 0
        """The first line without a row."""
        self.read: Read | None = None
        """How much of the input had been read at the last flush; None before the first."""
        self._known_bytes: int | None = None
        """Length of the rows then; None if unknown, as in files of older versions."""

    @staticmethod
    def files(out: Path) -> tuple[Path, ...]:
        """All files that are written: the result, its rows and facts, and new versions of two."""
        target = rows.target_of(out)
        ends = ("", ".partial", ".partial.json", ".new", ".partial.json.new")
        return tuple(target.with_name(target.name + end) for end in ends)

    @classmethod
    def exists(cls, out: Path) -> bool:
        """Whether a run that writes `out` can be resumed."""
        return cls.files(out)[2].exists()

    def __enter__(self) -> Self:
        self._file = _lock(self._rows)
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
        # a run that fails before its first row leaves nothing, but an interrupted one is kept
        failed = kind is not None and issubclass(kind, Exception)
        empty = failed and not self._file.closed and not self._file.tell()
        if sys.platform == "win32":  # an open file cannot be removed there
            self._file.close()
        if empty:
            self._remove()
        self._file.close()

    def write(self, row: rows.Row) -> None:
        """Adds a row."""
        self._file.write(rows.json_line(row))

    def flush(self, read: Read) -> None:
        """Hands the rows to the system, so that they outlive this process.

        read: the input so far, which includes every line that has a row.
        """
        self._file.flush()
        self.read = read
        self._write_facts()

    def finish(self, columns: rows.Columns) -> None:
        """Writes the result from the rows. columns: of a table (`rows.columns_of`)."""
        self._file.flush()
        if sys.platform == "win32":  # an open file cannot be moved there
            self._file.close()
        result = self._rows
        if self.out.suffix != ".jsonl":
            result = self._new
            rows.convert(self._rows, result, self.out.suffix, columns)
        result.replace(self.out)
        self._remove()

    def _remove(self) -> None:
        self._rows.unlink(missing_ok=True)
        self._facts.unlink(missing_ok=True)

    def _write_facts(self) -> None:
        """Writes how the rows were made; the rows are flushed before."""
        read = None if self.read is None else self.read._asdict()
        self._new_facts.write_bytes(
            orjson.dumps({**self.provenance, _READ: read, _ROWS_BYTES: self._file.tell()})
        )
        self._new_facts.replace(self._facts)

    def _begin(self) -> None:
        if not self.restart:
            if self.out.exists():
                if not self._file.tell():
                    self._rows.unlink()
                raise ClientError(f"{self.out} exists; --restart overwrites it")
            if self._file.tell():
                raise ClientError(
                    f"{self._rows} exists, but no {self._facts.name} that describes it; --restart "
                    "overwrites it"
                )
        self._file.seek(0)
        self._file.truncate()
        self._write_facts()

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
        for name in sorted(before.keys() | self.provenance.keys()):
            was, now = before.get(name), self.provenance.get(name)
            if was != now:
                raise ClientError(
                    f"{self._rows} was begun with {name} {was!r}, not {now!r}; give the same, or "
                    "--restart to start again"
                )

    def _cut(self) -> None:
        """Cuts off rows of unknown lines and an incomplete last row; sets `next_index`.

        A full buffer is written to the file before the facts are.
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
        """The position after the last line feed before `end`, 0 if there is none."""
        while end > 0:
            begin = max(0, end - _BLOCK_BYTES)
            self._file.seek(begin)
            feed = self._file.read(end - begin).rfind(b"\n")
            if feed >= 0:
                return begin + feed + 1
            end = begin
        return 0


def _lock(path: Path) -> IO[bytes]:
    """Opens a file to append to, locked for this process if the system has locks."""
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
    file.close()  # the command that had locked it has just finished and moved it
    return _lock(path)


def _damaged(path: Path) -> ClientError:
    return ClientError(f"{path} is damaged; --restart starts again")
