"""Text files as lines: UTF-8, plain or packed by gzip, xz or zstd."""

from __future__ import annotations

import codecs
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import zstandard

from model.outputs import naming

_PART_BYTES = 1 << 16
_LARGEST_WINDOW = 1 << 31
"""Bytes that zstd may look back, the most that its `--long` makes files ask for."""
_JSON = frozenset({".json", ".jsonl", ".ndjson"})


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
}


def lines(path: Path) -> Iterator[str]:
    """Yields the lines of a file without their ends, which are LF or CRLF.

    A byte order mark before the first line is left out; a CR elsewhere is the text's own. Packed
    files are known by their names, in any letter case. Raises OSError and ValueError with the
    file's name: a packed file that is damaged or ends early is not taken for a whole one, nor are
    JSON, UTF-16 and bytes that are not UTF-8 taken for text.
    """
    ends = [suffix.lower() for suffix in path.suffixes]
    unpacker = _UNPACKERS.get(ends[-1]) if ends else None
    if not _JSON.isdisjoint(ends[-1:] if unpacker is None else ends[-2:]):
        raise ValueError(
            f"{path} is JSON by its name; write its texts into a text file, one paragraph a line"
        )
    with naming(path), path.open("rb") as file:
        parts = iter(lambda: file.read(_PART_BYTES), b"")
        if unpacker is not None:
            parts = _unpacked(parts, unpacker, path)
        yield from _decoded(parts, path)


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
                yield running.decompress(part)
            except (zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
                what = f"it is damaged, or is no {path.suffix} file"
                raise ValueError(f"{path} cannot be unpacked: {error}; {what}") from None
            part = running.unused_data if running.eof else b""
            running = None if running.eof else running
    if empty or running is not None:
        raise ValueError(f"{path} ends early: it was not written, copied or downloaded whole")


def _decoded(parts: Iterable[bytes], path: Path) -> Iterator[str]:
    number = 0  # of the lines so far
    for whole in _whole_lines(parts):
        if not number:
            whole = _beginning(whole, path)
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


def _beginning(lines: bytes, path: Path) -> bytes:
    """The first lines without a byte order mark. Raises ValueError for UTF-16 and other bytes."""
    first = lines[: lines.index(b"\n")]
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in first:
        raise ValueError(
            f"{path} is not UTF-8: it begins as UTF-16 or a binary file does; "
            "iconv -f UTF-16 -t UTF-8 converts UTF-16"
        )
    return lines.removeprefix(codecs.BOM_UTF8)


def read(path: Path) -> str:
    """A whole file; see `lines`."""
    return "".join(f"{line}\n" for line in lines(path))
