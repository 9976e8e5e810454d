"""Rows of scores, and files of them: JSON lines, CSV or Parquet."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, Any

import orjson

from app.client.errors import ClientError
from app.text.lines import on_one_line

Row = dict[str, Any]
Columns = dict[str, Any]
"""The columns of a table with their types: Arrow's names, lists of one type, and structs."""

_MEASURES = {
    "index": "int64",
    "custom_id": "string",
    "logprob_sum": "float64",
    "token_count": "int64",
    "unknown_count": "int64",
    "word_count": "int64",
    "byte_count": "int64",
    "perplexity": "float64",
    "word_perplexity": "float64",
    "bits_per_byte": "float64",
    "fluency": "float64",
    "eos_scored": "bool",
    "error": "string",
}
_LISTS = {
    "tokens": ["string"],
    "token_ids": ["int32"],
    "logprobs": ["float32"],
    "offsets": [["int32"]],
}
_WORD = {"word": "string", "offsets": ["int32"], "surprisal": "float64", "tokens": ["int32"]}
_ROWS_AT_ONCE = 4096


def json_line(row: Row) -> bytes:
    """A row as a line of JSON, without characters that some readers take for line breaks."""
    return on_one_line(orjson.dumps(row)) + b"\n"


def row_of(answer: Row, index: int, custom_id: str | None) -> Row:
    """A line's answer as one flat row; `index` is the number of the line, from 0."""
    row = {"index": index, "custom_id": custom_id}
    if "error" in answer:
        return row | {"error": answer["error"]["message"]}
    scored: Row = answer["data"][0]
    return row | scored | row  # the first for the order of the fields, the last for `index`


def check(out: Path) -> None:
    """Raises ClientError if a file of this name cannot be written."""
    if out.suffix not in (".jsonl", ".csv", ".parquet"):
        raise ClientError(f"{out}: the name must end in .jsonl, .csv or .parquet")
    target = target_of(out)
    if target.suffix != out.suffix:
        raise ClientError(f"{out} is a link to {target}, whose name must end in {out.suffix} too")
    if target.is_symlink():
        raise ClientError(f"{out} is a link that leads to itself")
    if not target.parent.is_dir():
        raise ClientError(f"{out}: there is no folder {target.parent}")
    if target.exists() and not target.is_file():
        raise ClientError(f"{out} is not a regular file")
    if out.suffix == ".parquet":
        _arrow()


def target_of(out: Path) -> Path:
    """The file to write: `out`, or the target of a link."""
    return Path(os.path.realpath(out)) if out.is_symlink() else out


def columns_of(options: Mapping[str, Any]) -> Columns:
    """The columns of a table: the fields of answers to these options."""
    lists = _LISTS if options.get("detail", "tokens") == "tokens" else {}
    return _MEASURES | lists | ({"words": [_WORD]} if options.get("words") else {})


def convert(rows: Path, out: Path, suffix: str, columns: Columns) -> None:
    """Converts rows from lines of JSON to CSV or Parquet, by `suffix`."""
    write = _write_parquet if suffix == ".parquet" else _write_csv
    with rows.open("rb") as file:
        write((orjson.loads(line) for line in file), columns, out)


def _write_csv(rows: Iterator[Row], columns: Columns, out: Path) -> None:
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(_Lines(file))
        writer.writerow(columns)
        for row in rows:
            writer.writerow([_cell(row.get(name)) for name in columns])


class _Lines:
    """A file whose lines end with only a line feed.

    The CSV writer must end them with CR LF: it quotes fields that contain a character of its line
    ends, and readers take either character for the end of a line.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, line: str) -> int:
        return self._file.write(line.removesuffix("\r\n") + "\n")


def _cell(value: object) -> object:
    if isinstance(value, list | bool):
        return orjson.dumps(value).decode()
    return value


def _write_parquet(rows: Iterator[Row], columns: Columns, out: Path) -> None:
    arrow, parquet = _arrow()
    schema = arrow.schema([(name, _type(arrow, kind)) for name, kind in columns.items()])
    with parquet.ParquetWriter(out, schema) as writer:
        while group := list(islice(rows, _ROWS_AT_ONCE)):
            writer.write_table(arrow.Table.from_pylist(group, schema=schema))


def _type(arrow: Any, kind: Any) -> Any:
    if isinstance(kind, list):
        return arrow.list_(_type(arrow, kind[0]))
    if isinstance(kind, dict):
        return arrow.struct([(name, _type(arrow, inner)) for name, inner in kind.items()])
    return arrow.type_for_alias(kind)


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ClientError("Parquet needs the package pyarrow: `pip install pyarrow`") from None
    return pyarrow, pyarrow.parquet
