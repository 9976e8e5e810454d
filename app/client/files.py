"""Files of lines, read in constant memory: plain, .gz, .xz or .zst."""

from __future__ import annotations

import codecs
import gzip
import lzma
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import httpx
import orjson

from app.client.errors import ClientError

_PART_BYTES = 1 << 16
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_JSON_SUFFIXES = frozenset({".jsonl", ".ndjson"})


class Source:
    """Lines of a file, or of standard input for `-`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = None if name == "-" else Path(name)
        self._file: IO[bytes] | None = None

    @property
    def size(self) -> int | None:
        """Bytes of the file as it lies there. Raises ClientError."""
        try:
            return None if self.path is None else self.path.stat().st_size
        except OSError as error:
            raise ClientError(f"{self.name}: {error.strerror or error}") from None

    @property
    def position(self) -> int:
        """Bytes of it that are read."""
        if self._file is None:
            return 0
        return (self.size or 0) if self._file.closed else self._file.tell()

    @property
    def json(self) -> bool:
        """Whether its name says that its lines are JSON."""
        suffixes = () if self.path is None else self.path.suffixes
        return any(suffix in _JSON_SUFFIXES for suffix in suffixes)

    def lines(self) -> Iterator[bytes]:
        """Its lines without their line feeds, and without a byte order mark in front of all.

        Raises ClientError.
        """
        for index, line in enumerate(self._lines()):
            yield line if index else line.removeprefix(codecs.BOM_UTF8)

    def _lines(self) -> Iterator[bytes]:
        rest = b""
        try:
            for part in self._parts():
                *ended, rest = (rest + part).split(b"\n")
                yield from ended
        except OSError as error:
            raise ClientError(f"{self.name}: {error.strerror or error}") from None
        except (EOFError, lzma.LZMAError, httpx.DecodingError) as error:
            raise ClientError(f"{self.name} cannot be read: {error}") from None
        if rest:
            yield rest

    def _parts(self) -> Iterator[bytes]:
        if self.path is None:
            yield from _read(sys.stdin.buffer)
            return
        with self.path.open("rb") as self._file:
            suffix = self.path.suffix
            if suffix == ".gz":
                with gzip.GzipFile(fileobj=self._file) as unpacked:
                    yield from _read(unpacked)
            elif suffix == ".xz":
                with lzma.LZMAFile(self._file) as unpacked:
                    yield from _read(unpacked)
            elif suffix == ".zst":
                yield from self._unpacked(self._file)
            else:
                yield from _read(self._file)

    def _unpacked(self, file: IO[bytes]) -> Iterator[bytes]:
        """Unpacks by httpx, which takes the package zstandard if it is there; serving lacks it."""
        headers = {"content-encoding": "zstd"}
        parts = httpx.Response(200, headers=headers, content=_read(file)).iter_bytes()
        for number, part in enumerate(parts):
            if not number and part.startswith(_ZSTD_MAGIC):
                raise ClientError(
                    f"{self.name}: .zst needs the package zstandard; or unpack it by zstd -d"
                )
            yield part


def _read(file: IO[bytes] | gzip.GzipFile | lzma.LZMAFile) -> Iterator[bytes]:
    while part := file.read(_PART_BYTES):
        yield part


def text_of(line: bytes) -> dict[str, Any]:
    """A line of plain text as a line of the bulk endpoint. Raises ValueError."""
    try:
        return {"input": line.removesuffix(b"\r").decode()}
    except UnicodeDecodeError as error:
        raise ValueError(f"text must be UTF-8: {error}") from None


def text_in(line: bytes, field: str) -> dict[str, Any]:
    """The text of a line of JSON, and its `custom_id` or `id`, as a line of the bulk endpoint.

    Raises ValueError.
    """
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get(field), str):
        raise ValueError(f"not an object with a string {field!r}")
    name = found.get("custom_id", found.get("id"))
    known = isinstance(name, str | int) and not isinstance(name, bool)
    return {"input": found[field]} | ({"custom_id": str(name)} if known else {})
