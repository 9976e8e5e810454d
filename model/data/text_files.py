"""Text files as lines: UTF-8, plain or compressed with gzip, xz, zstd or bzip2."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from model.core.outputs import naming
from model.core.packed import SUFFIXES, NotTextError, lines_of, text_parts

_PART_BYTES = 1 << 16
_OTHER_FORMS = {
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "JSON"),
    **dict.fromkeys((".csv", ".tsv"), "a table"),
    ".xml": "XML",
    **dict.fromkeys((".html", ".htm"), "HTML"),
}
"""Suffixes of files that are not text, and what they are."""


def lines(path: Path) -> Iterator[str]:
    """Yields the lines of a file without their ends, LF or CRLF.

    A byte order mark at the beginning is left out; a CR elsewhere belongs to the text. Raises
    OSError and ValueError, which name the file, for a compressed file that is damaged or truncated,
    for JSON, tables and XML by their names, and for bytes that are not UTF-8.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes.pop() if suffixes and suffixes[-1] in SUFFIXES else ""
    form = _OTHER_FORMS.get(suffixes[-1]) if suffixes else None
    if form is not None:
        raise ValueError(
            f"{path} is {form} by its name; write its texts into a text file, one paragraph a line"
        )
    with naming(path), path.open("rb") as file:
        parts = iter(lambda: file.read(_PART_BYTES), b"")
        number = 0
        try:
            for line in lines_of(text_parts(parts, packed)):
                number += 1
                text = line if number > 1 else line.removeprefix(codecs.BOM_UTF8)
                yield text.removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8: line {number}: {error.reason}") from None
        except NotTextError as error:
            raise ValueError(f"{path}: {error}") from None


def read(path: Path) -> str:
    """All text of a file; see `lines`."""
    return "".join(f"{line}\n" for line in lines(path))
