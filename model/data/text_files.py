"""Text files as lines: UTF-8, plain or compressed with gzip, xz, zstd or bzip2."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path

from model.core.outputs import naming
from model.core.packed import SUFFIXES, NotTextError, text_parts

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
        try:
            yield from _decode(text_parts(parts, packed), path)
        except NotTextError as error:
            raise ValueError(f"{path}: {error}") from None


def _decode(parts: Iterable[bytes], path: Path) -> Iterator[str]:
    number = 0  # of the lines so far
    for block in _blocks_of_lines(parts):
        raw = block if number else block.removeprefix(codecs.BOM_UTF8)
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            line = number + 1 + raw.count(b"\n", 0, error.start)
            raise ValueError(f"{path} is not UTF-8: line {line}: {error.reason}") from None
        block_lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
        yield from block_lines
        number += len(block_lines)


def _blocks_of_lines(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes, cut only after line feeds; the last line gets one if it has none."""
    begun: list[bytes] = []  # of one line, joined once however long it is
    for part in parts:
        end = part.rfind(b"\n") + 1
        if end:
            yield b"".join((*begun, part[:end]))
            begun = []
        if part[end:]:
            begun.append(part[end:])
    if begun:
        yield b"".join((*begun, b"\n"))


def read(path: Path) -> str:
    """All text of a file; see `lines`."""
    return "".join(f"{line}\n" for line in lines(path))
