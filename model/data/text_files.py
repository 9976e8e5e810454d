"""Text files as lines: UTF-8, plain or packed by gzip, xz, zstd or bzip2."""

from __future__ import annotations

import bz2
import codecs
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import zstandard

from model.core.outputs import naming

_PART_BYTES = 1 << 16
_HEAD_BYTES = 1 << 16
"""How much is looked at for what is no text."""
_LARGEST_WINDOW = 1 << 31
"""Bytes that zstd may look back, the most that its `--long` makes files ask for."""
_NUL_SHARE = 0.01
"""Zero bytes of all: UTF-16 has every second in Latin script; a corpus may hold a stray one."""
_OTHER_FORMS = {
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "JSON"),
    **dict.fromkeys((".csv", ".tsv"), "a table"),
    ".xml": "XML",
    **dict.fromkeys((".html", ".htm"), "HTML"),
}
"""Names' suffixes of what is no text, and what it is."""


class _Unpacker(Protocol):
    """Unpacks one stream or frame, of which a file may hold several."""

    @property
    def eof(self) -> bool:
        """Whether the stream has ended."""

    @property
    def unused_data(self) -> bytes:
        """What follows its end."""

    def decompress(self, data: bytes, /) -> bytes:
        """The next bytes. Raises the library's error for damaged data."""


def _zstd() -> _Unpacker:
    made: _Unpacker = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj()
    return made


_UNPACKERS: dict[str, Callable[[], _Unpacker]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".xz": lzma.LZMADecompressor,
    ".zst": _zstd,
    ".bz2": bz2.BZ2Decompressor,
}


def lines(path: Path) -> Iterator[str]:
    """Yields the lines of a file without their ends, which are LF or CRLF.

    A byte order mark before the first line is left out; a CR elsewhere is the text's own. Packed
    files are known by their names, in any letter case. Raises OSError and ValueError with the
    file's name: a packed file that is damaged or ends early is not taken for a whole one, nor are
    JSON, tables, XML, UTF-16 and bytes that are not UTF-8 taken for text.
    """
    ends = [suffix.lower() for suffix in path.suffixes]
    unpacker = _UNPACKERS.get(ends[-1]) if ends else None
    form = _OTHER_FORMS.get("".join(ends[-1:] if unpacker is None else ends[-2:-1]))
    if form is not None:
        raise ValueError(
            f"{path} is {form} by its name; write its texts into a text file, one paragraph a line"
        )
    with naming(path), path.open("rb") as file:
        parts = iter(lambda: file.read(_PART_BYTES), b"")
        if unpacker is not None:
            parts = _unpacked(parts, unpacker, path)
        yield from _decoded(_checked(parts, path), path)


def _unpacked(
    parts: Iterable[bytes], unpacker: Callable[[], _Unpacker], path: Path
) -> Iterator[bytes]:
    """Every stream of a packed file. Raises ValueError unless the last one has its end."""
    running: _Unpacker | None = None
    empty = True
    for part in parts:
        empty = False
        while part:
            running = running or unpacker()
            try:
                found = running.decompress(part)
            except (zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError) as error:  # bz2's
                what = f"it is damaged, or is no {path.suffix} file"
                raise ValueError(f"{path} cannot be unpacked: {error}; {what}") from None
            yield found
            part = running.unused_data if running.eof else b""
            running = None if running.eof else running
    if empty or running is not None:
        raise ValueError(f"{path} ends early: it was not written, copied or downloaded whole")


def _decoded(parts: Iterable[bytes], path: Path) -> Iterator[str]:
    number = 0  # of the lines so far
    for whole in _whole_lines(parts):
        if not number:
            whole = whole.removeprefix(codecs.BOM_UTF8)
        try:
            text = whole.decode()
        except UnicodeDecodeError as error:
            line = number + 1 + whole.count(b"\n", 0, error.start)
            raise ValueError(f"{path} is not UTF-8: line {line}: {error.reason}") from None
        found = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
        yield from found
        number += len(found)


def _whole_lines(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes, cut behind line feeds alone; the last line gets one if it has none."""
    begun: list[bytes] = []  # joined once a line, however long it is
    for part in parts:
        end = part.rfind(b"\n") + 1
        if end:
            yield b"".join((*begun, part[:end]))
            begun = []
        if part[end:]:
            begun.append(part[end:])
    if begun:
        yield b"".join((*begun, b"\n"))


def _checked(parts: Iterator[bytes], path: Path) -> Iterator[bytes]:
    """The same bytes. Raises ValueError for UTF-16 and binary files."""
    head = b""
    for part in parts:
        head += part
        if len(head) >= _HEAD_BYTES:
            break
    marked = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if marked or head.count(0) > _NUL_SHARE * len(head):
        raise ValueError(
            f"{path} is not UTF-8: it begins as UTF-16 or a binary file does; "
            "iconv -f UTF-16 -t UTF-8 converts UTF-16"
        )
    yield head
    yield from parts


def read(path: Path) -> str:
    """A whole file; see `lines`."""
    return "".join(f"{line}\n" for line in lines(path))
