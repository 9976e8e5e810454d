"""Files of lines, plain or compressed, read in bounded memory; name and content tell the form."""

from __future__ import annotations

import codecs
import csv
import json
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import orjson

from app.client.errors import ClientError
from model.core.packed import HEAD_BYTES, SUFFIXES, NotTextError, lines_of, text_parts

Form = Literal["JSON", "a table", "XML"]

_PART_BYTES = 1 << 16
_JSON_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json"})
_TABLE_SUFFIXES = frozenset({".csv", ".tsv"})

_XML_BEGINS = re.compile(rb"\s*<(\?xml\b|!doctype\b|html[\s>])", re.IGNORECASE)
_STRING = rb'"[^"\\\n]*(?:\\.[^"\\\n]*)*'
_SCALAR = rb"(?:-?\d[\d.eE+-]*|true|false|null|NaN|-?Infinity)\s*(?:[,}\]]|\Z)"
_VALUE = rb'(?:[\[{]|%b(?:"\s*(?:[,}\]]|\Z)|\\?\Z)|%b|\Z)' % (_STRING, _SCALAR)
_OBJECT = rb'\{\s*%b"\s*:\s*%b' % (_STRING, _VALUE)
_STRINGS = rb'\[\s*%b(?:"\s*(?:,\s*(?:["\[{\]\d-]|null|\Z)|\]\s*[,\]]|\Z)|\\?\Z)' % _STRING
_JSON_BEGINS = re.compile(rb"\s*(?:\[\s*)*(?:%b|%b)" % (_OBJECT, _STRINGS))
"""An object whose first value is complete, or a list of strings; the head may end inside either."""
_NUMBER = re.compile(r"-?\d+(\.\d+)?\s*")
_COLUMN = re.compile(r"[^\W\d][\w .:()/#-]*(?<! )")


class Source:
    """Lines of a file, or of standard input for `-`.

    json: whether its lines are JSON (True) or text in any case (False). None: as its name says, and
    a file that looks different is refused. advice: how the error then ends.
    """

    def __init__(self, name: str, *, json: bool | None = None, advice: str = "") -> None:
        self.path = None if name == "-" else Path(name)
        self.name = "standard input" if self.path is None else name
        suffixes = [] if self.path is None else [one.lower() for one in self.path.suffixes]
        self._packed = suffixes.pop() if suffixes and suffixes[-1] in SUFFIXES else ""
        self._form = suffixes[-1] if suffixes else ""
        self._form_is_given = json is not None
        self._advice = advice
        self.json = self._form in _JSON_SUFFIXES if json is None else json
        """Whether its lines are read as JSON."""
        self.position = 0
        """Bytes of the stored file that have been read."""

    @property
    def size(self) -> int | None:
        """Bytes of the stored file; None if it is not a regular file. Raises ClientError."""
        try:
            status = None if self.path is None else self.path.stat()
        except OSError as error:
            raise ClientError(f"{self.name}: {error.strerror or error}") from None
        return status.st_size if status is not None and stat.S_ISREG(status.st_mode) else None

    def check(self, written: Iterable[Path | int]) -> None:
        """Raises ClientError if the file does not have its form, or is one of `written`.

        written: files, or descriptors of open ones. Standard input and pipes can be read only once,
        so their content is checked when the lines are read.
        """
        for other in written:
            if self._is(other):
                raise ClientError(
                    f"{self.name}: its rows would be written over it; give another output"
                )
        if self.size is not None:
            next(self.lines(), None)

    def _is(self, other: Path | int) -> bool:
        """Whether the other is the same file, perhaps under another name."""
        try:
            source = os.fstat(sys.stdin.fileno()) if self.path is None else self.path.stat()
            target = os.fstat(other) if isinstance(other, int) else other.stat()
        except (OSError, AttributeError):  # one does not exist, is closed, or is only in memory
            return False
        return stat.S_ISREG(source.st_mode) and os.path.samestat(source, target)

    def lines(self) -> Iterator[bytes]:
        """Its lines without their line feeds, and without a byte order mark at the beginning.

        Raises ClientError, before the first line if the file does not have its form.
        """
        self.position = 0
        try:
            yield from lines_of(self._checked_parts())
        except OSError as error:
            raise ClientError(f"{self.name}: {error.strerror or error}") from None
        except NotTextError as error:
            raise ClientError(f"{self.name}: {error}") from None

    def _checked_parts(self) -> Iterator[bytes]:
        """The content without a byte order mark. Raises NotTextError."""
        parts = text_parts(self._parts(), self._packed)
        head = next(parts)
        if not self._form_is_given:
            begin = head[:HEAD_BYTES].removeprefix(codecs.BOM_UTF8)
            self._check_form(begin, complete=len(head) < HEAD_BYTES)
        yield head.removeprefix(codecs.BOM_UTF8)
        yield from parts

    def _check_form(self, head: bytes, *, complete: bool) -> None:
        if self._form == ".json":
            if _is_one_document(head, complete=complete):
                raise NotTextError(
                    "it has no JSON object on its first line, and each line must be one; "
                    "`jq -c '.[]'` writes a list as such lines"
                )
        elif not self.json:
            table = self._form in _TABLE_SUFFIXES
            form = "a table" if table else _form_of(head, complete=complete)
            if form is not None:
                first = "" if form == "JSON" else "; if it is, write the texts in it as lines"
                raise NotTextError(f"it looks like {form}, not lines of text{first}{self._advice}")

    def _parts(self) -> Iterator[bytes]:
        if self.path is None and sys.stdin is None:
            raise NotTextError("it is closed")
        with nullcontext(sys.stdin.buffer) if self.path is None else self.path.open("rb") as file:
            while part := file.read(_PART_BYTES):
                self.position += len(part)
                yield part


class LineError(ValueError):
    """Why a line cannot be scored. custom_id: its id, if that can be read."""

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
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise LineError(f"not JSON: {error}", _id_as_written(line)) from None
    name = _id_of(value)
    # a number may have more digits than a float or a 64-bit integer
    custom_id = _id_as_written(line) if isinstance(name, float) else _as_string(name)
    if not isinstance(value, dict) or not isinstance(value.get(field), str):
        raise LineError(f"not an object with a string {field!r}", custom_id)
    return value[field], custom_id


def _id_of(value: object) -> object:
    if not isinstance(value, dict):
        return None
    name = value.get("custom_id")
    return value.get("id") if name is None else name


def _id_as_written(line: bytes) -> str | None:
    """The id of a line that may have NaN or lone surrogates, which strict JSON does not allow."""
    try:
        return _as_string(_id_of(json.loads(line, parse_float=str, parse_int=str)))
    except (ValueError, RecursionError):
        return None


def _as_string(name: object) -> str | None:
    if name is None:
        return None
    text = name if isinstance(name, str) else json.dumps(name, ensure_ascii=False)
    return text.encode(errors="backslashreplace").decode()


def _form_of(head: bytes, *, complete: bool) -> Form | None:
    """The form of a file that is not lines of text; None for a file that may be text.

    complete: whether the head is all of the file. In doubt a file is text: one that begins with a
    brace or contains commas, tabs or quotation marks must have the other form throughout.
    """
    lines = head.split(b"\n")
    if not complete:
        lines.pop()  # the head may cut it
    lines = [line.strip(b" \r") for line in lines]
    lines = [line for line in lines if line]
    if _XML_BEGINS.match(head):
        return "XML"
    if _is_json(head, lines, complete=complete):
        return "JSON"
    if len(lines) > 1 and (_tabs(lines) or _columns(lines, complete=complete)):
        return "a table"
    return None


def _is_one_document(head: bytes, *, complete: bool) -> bool:
    """Whether the first line, if there is one, is not a JSON object by itself."""
    first, feed, _ = head.lstrip().partition(b"\n")
    if not first:
        return False
    if complete or feed:
        return not isinstance(_json_value(first), dict)
    return not first.startswith(b"{")


def _is_json(head: bytes, lines: Sequence[bytes], *, complete: bool) -> bool:
    if lines and 2 * sum(map(_is_record, lines)) > len(lines):
        return True
    if complete and _is_record(head):
        return True
    # documents of many lines, a truncated one, or a line that is longer than the head
    begun = _JSON_BEGINS.match(head)
    return begun is not None and not (lines and _is_record(lines[0]))


def _is_record(raw: bytes) -> bool:
    value = _json_value(raw)
    if isinstance(value, list):
        return any(isinstance(one, str | dict) for one in value)
    return isinstance(value, dict) and bool(value)


def _json_value(raw: bytes) -> object:
    """A JSON value, also with Python's NaN and Infinity; None if it is not JSON."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def _tabs(lines: Sequence[bytes]) -> bool:
    """Whether every line has the same number of tabs, with or without those at its ends."""
    inside = {line.strip().count(b"\t") for line in lines}
    return inside != {0} and (len(inside) == 1 or len({line.count(b"\t") for line in lines}) == 1)


def _columns(lines: Sequence[bytes], *, complete: bool) -> bool:
    """Whether the first line names columns, and the other lines have as many.

    Names that follow spaces may be a sentence: then they must be identifiers, and one of the
    columns must contain only numbers.
    """
    text = [line.decode(errors="replace") + "\n" for line in lines]
    for separator in (",", ";"):
        table = csv.reader(text, delimiter=separator, skipinitialspace=True)
        try:
            names = next(table, [])
            unnamed = int(names[:1] == [""])  # a first column of row numbers may have no name
            if len(names) < 2 or not all(map(_COLUMN.fullmatch, names[unnamed:])):
                continue
            rows = list(table)
        except csv.Error:
            continue
        if not complete and len(rows) > 1:
            rows.pop()  # the head may cut it
        if not rows or any(len(row) != len(names) for row in rows):
            continue
        if separator + " " not in text[0]:
            return True
        numbered = any(all(map(_NUMBER.fullmatch, column)) for column in zip(*rows, strict=True))
        if numbered and all(map(str.isidentifier, names[unnamed:])):
            return True
    return False
