"""Detects files that are not lines of text by their first bytes: JSON, tables, XML."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from typing import Literal

Form = Literal["JSON", "a table", "XML"]

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


def form_of(head: bytes, *, complete: bool) -> Form | None:
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


def is_one_document(head: bytes, *, complete: bool) -> bool:
    """Whether the first line, if there is one, is not a JSON object by itself."""
    first, feed, _ = head.lstrip().partition(b"\n")
    if not first:
        return False
    return not (isinstance(_json(first), dict) if complete or feed else first.startswith(b"{"))


def _is_json(head: bytes, lines: Sequence[bytes], *, complete: bool) -> bool:
    if lines and 2 * sum(map(_is_record, lines)) > len(lines):
        return True
    if complete and _is_record(head):
        return True
    # documents of many lines, a truncated one, or a line that is longer than the head
    begun = _JSON_BEGINS.match(head)
    return begun is not None and not (lines and _is_record(lines[0]))


def _is_record(raw: bytes) -> bool:
    value = _json(raw)
    if isinstance(value, list):
        return any(isinstance(one, str | dict) for one in value)
    return isinstance(value, dict) and bool(value)


def _json(raw: bytes) -> object:
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
