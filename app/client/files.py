"""Files of lines, read in bounded memory: plain or packed, their form told by name and content."""

from __future__ import annotations

import codecs
import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import orjson

from app.client import content
from app.client.errors import ClientError
from app.client.packed import SUFFIXES, unpacked

_PART_BYTES = 1 << 16
_JSON_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json"})
_TABLE_SUFFIXES = frozenset({".csv", ".tsv"})


class Source:
    """Lines of a file, or of standard input for `-`.

    json: whether its lines are JSON (True) or text whatever they look like (False). None: its name
    says so, and what looks like something else is refused. otherwise: what to do then.
    """

    def __init__(self, name: str, *, json: bool | None = None, otherwise: str = "") -> None:
        self.path = None if name == "-" else Path(name)
        self.name = "standard input" if self.path is None else name
        suffixes = [] if self.path is None else [one.lower() for one in self.path.suffixes]
        self._packed = suffixes.pop() if suffixes and suffixes[-1] in SUFFIXES else ""
        self._form = suffixes[-1] if suffixes else ""
        self._told = json is not None
        self._otherwise = otherwise
        self.json = self._form in _JSON_SUFFIXES if json is None else json
        """Whether its lines are read as JSON."""
        self.position = 0
        """Bytes of the file that are read."""

    @property
    def size(self) -> int | None:
        """Bytes of the stored file; None if it is not a regular file. Raises ClientError."""
        try:
            found = None if self.path is None else self.path.stat()
        except OSError as error:
            raise ClientError(f"{self.name}: {error.strerror or error}") from None
        return found.st_size if found is not None and stat.S_ISREG(found.st_mode) else None

    def check(self, written: Iterable[Path | int]) -> None:
        """Raises ClientError if the file cannot be read as it should be, or is one of `written`.

        written: files, or descriptors of open ones. The content of standard input and of pipes,
        which can be read only once, is looked at when the lines are read.
        """
        for other in written:
            if self._is(other):
                raise ClientError(
                    f"{self.name}: its rows would be written over it; give another output"
                )
        if self.size is not None:
            next(self.lines(), None)

    def _is(self, other: Path | int) -> bool:
        """Whether the other is the same file, under whatever name."""
        try:
            own = os.fstat(sys.stdin.fileno()) if self.path is None else self.path.stat()
            found = os.fstat(other) if isinstance(other, int) else other.stat()
        except (OSError, AttributeError):  # it is not there, or closed, or only in memory
            return False
        return stat.S_ISREG(own.st_mode) and os.path.samestat(own, found)

    def lines(self) -> Iterator[bytes]:
        """Its lines without their line feeds, and without a byte order mark before all.

        Raises ClientError, before the first line if the content is not what it should be.
        """
        self.position = 0
        held: list[bytes] = []
        try:
            for part in self._looked_at(unpacked(self._parts(), self._packed)):
                first, *others = part.split(b"\n")
                held.append(first)
                if others:
                    yield b"".join(held)
                    yield from others[:-1]
                    held = others[-1:]
        except OSError as error:
            raise ClientError(f"{self.name}: {error.strerror or error}") from None
        except ClientError as error:
            raise ClientError(f"{self.name}: {error}") from None
        if last := b"".join(held):
            yield last

    def _looked_at(self, parts: Iterator[bytes]) -> Iterator[bytes]:
        """The content without a byte order mark. Raises ClientError, without the file's name."""
        head = b""
        for part in parts:
            head += part
            if len(head) >= content.HEAD_BYTES:
                break
        begin = head[: content.HEAD_BYTES]
        if (what := content.no_text(begin)) is not None:
            raise ClientError(f"it is {what}")
        if not self._told:
            whole = len(head) < content.HEAD_BYTES
            self._check_form(begin.removeprefix(codecs.BOM_UTF8), whole=whole)
        yield head.removeprefix(codecs.BOM_UTF8)
        yield from parts

    def _check_form(self, head: bytes, *, whole: bool) -> None:
        if self._form == ".json":
            if content.is_one_document(head, whole=whole):
                raise ClientError(
                    "it has no JSON object on its first line, and each line must be one; of a list "
                    "`jq -c '.[]'` makes such lines"
                )
        elif not self.json:
            table = self._form in _TABLE_SUFFIXES
            form = "a table" if table else content.form_of(head, whole=whole)
            if form is not None:
                first = "" if form == "JSON" else "; if it is, write the texts in it as lines"
                raise ClientError(
                    f"it looks like {form}, not lines of text{first}{self._otherwise}"
                )

    def _parts(self) -> Iterator[bytes]:
        if self.path is not None:
            with self.path.open("rb") as file:
                yield from self._read(file)
        elif sys.stdin is None:
            raise ClientError("it is closed")
        else:
            yield from self._read(sys.stdin.buffer)

    def _read(self, file: IO[bytes]) -> Iterator[bytes]:
        while part := file.read(_PART_BYTES):
            self.position += len(part)
            yield part


class LineError(ValueError):
    """Why a line cannot be scored. custom_id: what it calls itself, if that can be read."""

    def __init__(self, message: str, custom_id: str | None = None) -> None:
        super().__init__(message)
        self.custom_id = custom_id


def text_of(line: bytes) -> str:
    """The text of a line of plain text. Raises LineError."""
    try:
        return line.removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        raise LineError(f"text must be UTF-8: {error}") from None


def text_in(line: bytes, field: str) -> tuple[str, str | None]:
    """The text of a line of JSON, and its `custom_id` or `id` as a string; None if both are null.

    Raises LineError.
    """
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise LineError(f"no JSON: {error}", _id_as_written(line)) from None
    name = _id_of(found)
    # a number may have more digits than a float or an integer of 64 bits holds
    custom_id = _id_as_written(line) if isinstance(name, float) else _as_string(name)
    if not isinstance(found, dict) or not isinstance(found.get(field), str):
        raise LineError(f"not an object with a string {field!r}", custom_id)
    return found[field], custom_id


def _id_of(found: object) -> object:
    if not isinstance(found, dict):
        return None
    name = found.get("custom_id")
    return found.get("id") if name is None else name


def _id_as_written(line: bytes) -> str | None:
    """The id of a line that need not be strict JSON: NaN and halves of surrogate pairs may be."""
    try:
        return _as_string(_id_of(json.loads(line, parse_float=str, parse_int=str)))
    except (ValueError, RecursionError):
        return None


def _as_string(name: object) -> str | None:
    if name is None:
        return None
    text = name if isinstance(name, str) else json.dumps(name, ensure_ascii=False)
    return text.encode(errors="backslashreplace").decode()
