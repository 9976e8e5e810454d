"""Text files, plain or compressed with gzip, xz, zstd or bzip2, read in parts as bytes.

A damaged or truncated file raises an error instead of looking like a shorter one, and so does a
file that cannot be text.
"""

from __future__ import annotations

import bz2
import codecs
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

HEAD_BYTES = 1 << 16
"""How much of a file is inspected before anything is read from it."""
_CUT_BYTES = 1 << 12
"""Bytes that are decompressed at once: the result may be a thousand times as large."""
_WINDOW_BYTES = 1 << 31
"""The largest window of zstd, which `zstd --long=31` uses; it takes as much memory."""

_UTF16 = "UTF-16 or UTF-32, not UTF-8; `iconv -f UTF-16 -t UTF-8` converts it"
_OTHER_FORMATS = {
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
"""First bytes of files that are not text; what they are, and what to do."""
_TAR = (257, b"ustar")
_NUL_SHARE = 0.01
"""Zero bytes of all: in UTF-16 every second one of Latin script; a corpus may have a stray one."""


class NotTextError(ValueError):
    """Why a file cannot be read as text, in a sentence that does not contain its name."""


class _Format(NamedTuple):
    """A compressed format. begins: the first bytes of its files. decompressor: makes an object with
    the interface of `bz2.BZ2Decompressor` for one of a file's streams."""

    suffix: str
    begins: re.Pattern[bytes]
    decompressor: Callable[[], Any]


def _zstd() -> Any:
    """Raises NotTextError without the package, which serving does not need."""
    try:
        import zstandard
    except ModuleNotFoundError:
        raise NotTextError(".zst needs the package zstandard; or unpack it by zstd -d") from None
    return zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES).decompressobj()


_FORMATS = (
    _Format(
        ".gz", re.compile(rb"\x1f\x8b"), partial(zlib.decompressobj, wbits=16 + zlib.MAX_WBITS)
    ),
    _Format(".xz", re.compile(rb"\xfd7zXZ\x00"), lzma.LZMADecompressor),
    # the second is a skippable frame, which pzstd writes first
    _Format(".zst", re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), _zstd),
    _Format(".bz2", re.compile(rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38\x50\x90)"), bz2.BZ2Decompressor),
)
SUFFIXES = frozenset(form.suffix for form in _FORMATS)


def text_parts(parts: Iterator[bytes], suffix: str) -> Iterator[bytes]:
    """The decompressed bytes of a text file, which may begin with a byte order mark.

    The first part is the head, HEAD_BYTES or more, or all of a smaller file. parts: the file as is,
    whose beginning determines the format. suffix: the end of its name in lower case. Raises
    NotTextError if the file is damaged or truncated, if its name promises a format that it does not
    have, or if it cannot be text.
    """
    unpacked = _unpack(parts, suffix)
    head = b""
    for part in unpacked:
        head += part
        if len(head) >= HEAD_BYTES:
            break
    if (what := _not_text(head[:HEAD_BYTES])) is not None:
        raise NotTextError(f"it is {what}")
    yield head
    yield from unpacked


def lines_of(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The lines without their line feeds."""
    begun: list[bytes] = []  # of one line, joined once however long it is
    for part in parts:
        first, *others = part.split(b"\n")
        begun.append(first)
        if others:
            yield b"".join(begun)
            yield from others[:-1]
            begun = others[-1:]
    if last := b"".join(begun):
        yield last


def _unpack(parts: Iterator[bytes], suffix: str) -> Iterator[bytes]:
    first = next(parts, b"")
    for form in _FORMATS:
        if form.begins.match(first):
            yield from _decompress(chain([first], parts), form)
            return
    if suffix in SUFFIXES:
        raise NotTextError(
            f"its name ends in {suffix}, but it "
            + ("is not packed that way, or is damaged" if first else "is empty: it was cut off")
        )
    yield first
    yield from parts


def _decompress(parts: Iterable[bytes], form: _Format) -> Iterator[bytes]:
    stream = None
    for packed in _cut(parts):
        part = packed
        while part:
            if stream is None:
                part = part.lstrip(b"\0")  # zeros after a stream fill up a block
                if not part:
                    break
                stream = form.decompressor()
            try:
                content = stream.decompress(part)
            except Exception as error:  # each library has its own
                raise NotTextError(f"it is damaged ({form.suffix}): {error}") from None
            yield content
            part = b""
            if stream.eof:
                part, stream = stream.unused_data, None
    if stream is not None:
        raise NotTextError(f"it ends early ({form.suffix}): its last part is missing")


def _cut(parts: Iterable[bytes]) -> Iterator[bytes]:
    for part in parts:
        for begin in range(0, len(part), _CUT_BYTES):
            yield part[begin : begin + _CUT_BYTES]


def _not_text(head: bytes) -> str | None:
    """What a file is that cannot be lines of UTF-8, and what to do; None if it may be text."""
    for beginning, what in _OTHER_FORMATS.items():
        if head.startswith(beginning):
            return what
    offset, mark = _TAR
    if head.startswith(mark, offset):
        return "a tar archive; unpack it first"
    if head.count(0) > _NUL_SHARE * len(head):
        return "a binary file, or UTF-16, as it contains zero bytes"
    return None
