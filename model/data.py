"""Text files to memory-mapped token arrays, documents kept apart."""

from __future__ import annotations

import io
import json
import lzma
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import zstandard
from tqdm import tqdm

from model.measures import count_words
from model.tokenizer import Tokenizer

_DOCUMENTS_AT_ONCE = 64


def open_text(path: Path) -> IO[str]:
    """Opens a UTF-8 text file, also .xz and .zst. Raises FileNotFoundError, ValueError."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; give UTF-8 text files, plain, .xz or .zst, "
            "one paragraph a line"
        )
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8", newline="\n")
    if path.suffix == ".zst":
        stream = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), closefd=True)
        return io.TextIOWrapper(stream, encoding="utf-8", newline="\n")
    return path.open(encoding="utf-8", newline="\n")


def read_documents(
    paths: Iterable[Path], marker: str | None = None, *, each_line: bool = False
) -> Iterator[str]:
    """Documents of text files, lines joined by a line break, none at the end.

    A line that starts with `marker` opens a document and belongs to none; without a marker each
    file is one document, or with `each_line` every line. Empty documents are left out.
    """
    for path in paths:
        try:
            yield from _documents(path, marker, each_line=each_line)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8: {error}") from None


def _documents(path: Path, marker: str | None, *, each_line: bool) -> Iterator[str]:
    lines: list[str] = []
    with closing(open_text(path)) as file:
        for line in file:
            if marker is not None and line.startswith(marker):
                if lines:
                    yield "\n".join(lines)
                lines = []
            elif each_line:
                if text := line.rstrip("\n"):
                    yield text
            else:
                lines.append(line.rstrip("\n"))
    if any(lines):
        yield "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Counts:
    """What a corpus holds. Words are runs of non-white-space; bytes are UTF-8 of the text."""

    documents: int
    tokens: int
    words: int
    bytes: int
    unknown: int


class Corpus:
    """Tokenised documents on disk.

    tokens: uint16 or uint32 [N], each document as start symbol, text, end symbol.
    documents: int64 [D + 1], where each begins, and N. lines: int64, where each line that is not
    empty begins.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "corpus.json").exists():
            raise FileNotFoundError(f"{folder} holds no prepared corpus; make one: convlm prepare")
        self.folder = folder
        facts = json.loads((folder / "corpus.json").read_text())
        self.counts = Counts(**facts["counts"])
        self.vocabulary: int = facts["vocabulary"]
        self.tokens: npt.NDArray[np.uint32] = np.memmap(
            folder / "tokens.bin", mode="r", dtype=facts["dtype"]
        )
        self.documents: npt.NDArray[np.int64] = np.load(folder / "documents.npy")
        self.lines: npt.NDArray[np.int64] = np.load(folder / "lines.npy", mmap_mode="r")


def prepare(
    documents: Iterable[str], tokenizer: Tokenizer, folder: Path, *, end: str | None = None
) -> Counts:
    """Tokenises documents into `folder`; `Corpus(folder)` opens it.

    A document ends with the end symbol, or with the token of `end`. Raises ValueError when there is
    no document, or no such token.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "corpus.json").unlink(missing_ok=True)  # written last: without it there is no corpus
    dtype = np.uint16 if tokenizer.size <= 1 << 16 else np.uint32
    break_id = _break_id(tokenizer)
    end_id = tokenizer.end_id if end is None else _only_token(tokenizer, end)
    bounds, lines = [0], []
    words = size = unknown = 0
    iterator = iter(documents)
    with (folder / "tokens.bin").open("wb") as out, tqdm(unit=" documents") as bar:
        while batch := list(islice(iterator, _DOCUMENTS_AT_ONCE)):
            for text, encoded in zip(batch, tokenizer.encode_many(batch), strict=True):
                ids = np.concatenate([[tokenizer.start_id], encoded.ids, [end_id]])
                out.write(ids.astype(dtype).tobytes())
                begins = np.concatenate([[1], np.flatnonzero(ids[:-1] == break_id) + 1])
                empty = np.isin(ids[begins], (break_id, tokenizer.end_id))
                lines.append(bounds[-1] + begins[~empty])
                bounds.append(bounds[-1] + len(ids))
                words += count_words(text)
                size += len(text.encode())
                unknown += int((encoded.ids == tokenizer.unknown_id).sum())
            bar.update(len(batch))
    if len(bounds) == 1:
        raise ValueError("the files hold no document")
    counts = Counts(len(bounds) - 1, bounds[-1], words, size, unknown)
    np.save(folder / "documents.npy", np.array(bounds, np.int64))
    np.save(folder / "lines.npy", np.concatenate(lines))
    facts = {
        "counts": asdict(counts),
        "vocabulary": tokenizer.size,
        "dtype": np.dtype(dtype).name,
    }
    (folder / "corpus.json").write_text(json.dumps(facts, indent=2))
    return counts


def _break_id(tokenizer: Tokenizer) -> int:
    """The token of a line break, a piece of its own in both kinds of tokenizer."""
    ids = tokenizer.encode("\n").ids
    return int(ids[0]) if len(ids) == 1 else -1


def _only_token(tokenizer: Tokenizer, text: str) -> int:
    ids = tokenizer.encode(text).ids
    if len(ids) != 1:
        raise ValueError(f"the tokenizer has no token {text!r}")
    return int(ids[0])


def windows(
    corpus: Corpus, count: int, length: int, start_id: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Training rows that begin, as a request's text does, with the start symbol at a line.

    Returns inputs and targets, int64 [count, length]; a target of -100 is not counted: it would
    be the start symbol of the next document.
    """
    chosen = corpus.lines[np.sort(rng.integers(len(corpus.lines), size=count))]
    rows = np.full((count, length + 1), -1, np.int64)
    rows[:, 0] = start_id
    for row, begin in zip(rows, chosen, strict=True):
        tokens = corpus.tokens[begin : begin + length]
        row[1 : 1 + len(tokens)] = tokens
    targets = rows[:, 1:].copy()
    targets[(targets < 0) | (targets == start_id)] = -100
    inputs = rows[:, :-1]
    return np.where(inputs < 0, start_id, inputs), targets
