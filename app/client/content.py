"""What a file holds, told by its first bytes, so that nothing else is scored as lines of text."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Sequence
from typing import Literal

HEAD_BYTES = 1 << 16
"""How much of a file is looked at."""

Form = Literal["JSON", "a table", "XML"]

_UTF16 = "UTF-16 or UTF-32, not UTF-8; `iconv -f UTF-16 -t UTF-8` converts it"
_BEGINNINGS = {
    codecs.BOM_UTF16_LE: _UTF16,
    codecs.BOM_UTF16_BE: _UTF16,
    codecs.BOM_UTF32_BE: _UTF16,
    b"PK\x03\x04": "a ZIP archive; unpack it first",
    b"\xfd7zXZ\x00": "packed twice; unpack it first",
    b"\x1f\x8b": "packed twice; unpack it first",
    b"\x28\xb5\x2f\xfd": "packed twice; unpack it first",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it first",
    b"PAR1": "a Parquet file; write its column of texts as lines first",
    b"%PDF-": "a PDF; write its text as lines first",
}
_TAR = (257, b"ustar")
_NUL_SHARE = 0.01
"""Zero bytes of all: UTF-16 has every second in Latin script; a corpus may hold a stray one."""
_XML_BEGINS = re.compile(rb"\s*<(\?xml\b|!doctype\b|html[\s>])", re.IGNORECASE)
_STRING = rb'"[^"\\\n]*(?:\\.[^"\\\n]*)*'
_SCALAR = rb"(?:-?\d[\d.eE+-]*|true|false|null|NaN|-?Infinity)\s*(?:[,}\]]|\Z)"
_VALUE = rb'(?:[\[{]|%b(?:"\s*(?:[,}\]]|\Z)|\\?\Z)|%b|\Z)' % (_STRING, _SCALAR)
_OBJECT = rb'\{\s*%b"\s*:\s*%b' % (_STRING, _VALUE)
_STRINGS = rb'\[\s*%b(?:"\s*(?:,\s*(?:["\[{\]\d-]|null|\Z)|\]\s*[,\]]|\Z)|\\?\Z)' % _STRING
_JSON_BEGINS = re.compile(rb"\s*(?:\[\s*)*(?:%b|%b)" % (_OBJECT, _STRINGS))
"""An object whose first value has an end, or a list of strings; the head may end in either."""
_NUMBER = re.compile(r"-?\d+(\.\d+)?\s*")
_COLUMN = re.compile(r"[^\W\d][\w .:()/#-]*(?<! )")


def no_text(head: bytes) -> str | None:
    """What a file is that cannot be lines of UTF-8, and what to do; None if it may be."""
    for beginning, what in _BEGINNINGS.items():
        if head.startswith(beginning):
            return what
    place, mark = _TAR
    if head.startswith(mark, place):
        return "a tar archive; unpack it first"
    if head.count(0) > _NUL_SHARE * len(head):
        return "a binary file, or UTF-16, as it holds zero bytes"
    return None


def form_of(head: bytes, *, whole: bool) -> Form | None:
    """The form of a file that is not lines of text; None for what may well be that.

    whole: whether the head is all of the file. Text is taken for text if in doubt: what begins with
    a brace or holds commas, tabs or quotation marks must have the form throughout.
    """
    lines = head.split(b"\n")
    if not whole:
        lines.pop()  # cut off
    lines = [line.strip(b" \r") for line in lines]
    lines = [line for line in lines if line]
    if _XML_BEGINS.match(head):
        return "XML"
    if _holds_json(head, lines, whole=whole):
        return "JSON"
    if len(lines) > 1 and (_tabs(lines) or _columns(lines, whole=whole)):
        return "a table"
    return None


def is_one_document(head: bytes, *, whole: bool) -> bool:
    """Whether the first line of JSON, if there is one, is not an object of its own."""
    first, feed, _ = head.lstrip().partition(b"\n")
    if not first:
        return False
    return not (isinstance(_json(first), dict) if whole or feed else first.startswith(b"{"))


def _holds_json(head: bytes, lines: Sequence[bytes], *, whole: bool) -> bool:
    if lines and 2 * sum(map(_is_record, lines)) > len(lines):
        return True
    if whole and _is_record(head):
        return True
    # documents over many lines, one that was cut off, or a line that is longer than the head
    begun = _JSON_BEGINS.match(head)
    return begun is not None and not (lines and _is_record(lines[0]))


def _is_record(raw: bytes) -> bool:
    found = _json(raw)
    if isinstance(found, list):
        return any(isinstance(one, str | dict) for one in found)
    return isinstance(found, dict) and bool(found)


def _json(raw: bytes) -> object:
    """A JSON value, NaN and others of Python's among them; None for what is none."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def _tabs(lines: Sequence[bytes]) -> bool:
    """Whether every line has equally many tabs, those at its ends counted or not."""
    inside = {line.strip().count(b"\t") for line in lines}
    return inside != {0} and (len(inside) == 1 or len({line.count(b"\t") for line in lines}) == 1)


def _columns(lines: Sequence[bytes], *, whole: bool) -> bool:
    """Whether the first line names columns, and the others have as many.

    Names after spaces may be a sentence: they must be words, and numbers stand below one of them.
    """
    text = [line.decode(errors="replace") + "\n" for line in lines]
    for separator in (",", ";"):
        table = csv.reader(text, delimiter=separator, skipinitialspace=True)
        try:
            names = next(table, [])
            unnamed = 1 if names[:1] == [""] else 0  # the first may hold the numbers of the rows
            if len(names) < 2 or not all(map(_COLUMN.fullmatch, names[unnamed:])):
                continue
            rows = list(table)
        except csv.Error:
            continue
        if not whole and len(rows) > 1:
            rows.pop()  # it may be cut off
        if not rows or any(len(row) != len(names) for row in rows):
            continue
        if separator + " " not in text[0]:
            return True
        numbered = any(all(map(_NUMBER.fullmatch, column)) for column in zip(*rows, strict=True))
        if numbered and all(map(str.isidentifier, names[unnamed:])):
            return True
    return False
