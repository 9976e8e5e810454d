"""Packed files: gzip, xz, zstd or bzip2, unpacked part by part and never taken for whole."""

from __future__ import annotations

import bz2
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple, Protocol

from app.client.errors import ClientError

_CUT_BYTES = 1 << 12
"""Bytes that are unpacked at once: unpacked they may be a thousand times as many."""

_WINDOW_BYTES = 1 << 31
"""The most that zstd may look back, which `zstd --long=31` does; that much memory is taken then."""


class _Member(Protocol):
    """One of the streams that a packed file is made of."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


class Packing(NamedTuple):
    """A way to pack. begins: what such a file begins with. member: unpacks one stream of it."""

    suffix: str
    begins: re.Pattern[bytes]
    member: Callable[[], _Member]


def _gzip() -> _Member:
    return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)


def _zstd() -> _Member:
    """Raises ClientError without the package, which serving does not need."""
    try:
        import zstandard
    except ModuleNotFoundError:
        raise ClientError(".zst needs the package zstandard; or unpack it by zstd -d") from None
    made: Any = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES).decompressobj()
    return made  # type: ignore[no-any-return]


_PACKINGS = (
    Packing(".gz", re.compile(rb"\x1f\x8b"), _gzip),
    Packing(".xz", re.compile(rb"\xfd7zXZ\x00"), lzma.LZMADecompressor),
    # the second is a frame to be skipped, which pzstd begins with
    Packing(".zst", re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), _zstd),
    Packing(".bz2", re.compile(rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38\x50\x90)"), bz2.BZ2Decompressor),
)
SUFFIXES = frozenset(packing.suffix for packing in _PACKINGS)


def unpacked(parts: Iterator[bytes], suffix: str) -> Iterator[bytes]:
    """The content of a file that is given in parts; of one that is not packed, the parts.

    The file's own first bytes tell how it is packed. suffix: the end of its name in lower case.
    Raises ClientError, without the file's name, when the file is damaged or ends early, or when it
    is not packed though its name says so.
    """
    first = next(parts, b"")
    for packing in _PACKINGS:
        if packing.begins.match(first):
            yield from _members(first, parts, packing)
            return
    if suffix in SUFFIXES:
        raise ClientError(
            f"its name ends in {suffix}, but it "
            + ("is not packed that way, or damaged" if first else "is empty, so it was cut off")
        )
    yield first
    yield from parts


def _members(first: bytes, parts: Iterator[bytes], packing: Packing) -> Iterator[bytes]:
    member: _Member | None = None
    for packed in _cut(chain([first], parts)):
        part = packed
        while part:
            if member is None:
                part = part.lstrip(b"\0")  # zeros after a stream fill up a block
                if not part:
                    break
                member = packing.member()
            try:
                content = member.decompress(part)
            except Exception as error:  # each library has its own
                raise ClientError(f"it is damaged ({packing.suffix}): {error}") from None
            yield content
            part = b""
            if member.eof:
                part, member = member.unused_data, None
    if member is not None:
        raise ClientError(f"it ends early ({packing.suffix}): its last part is missing")


def _cut(parts: Iterable[bytes]) -> Iterator[bytes]:
    for part in parts:
        for begin in range(0, len(part), _CUT_BYTES):
            yield part[begin : begin + _CUT_BYTES]
