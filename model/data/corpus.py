"""Corpora: documents of text files as memory-mapped arrays of tokens."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError
from tqdm import tqdm

from model.core.config import complaint
from model.core.measures import count_words
from model.core.outputs import atomic_file, check_folder
from model.core.tokenizer import Tokenizer
from model.data import text_files

FACTS, TOKENS, DOCUMENTS, LINES = "corpus.json", "tokens.bin", "documents.npy", "lines.npy"
_DOCUMENTS_AT_ONCE = 64
_ADVICE = "the corpus is damaged or was copied in part; make it again: convlm prepare"


def read_documents(
    paths: Iterable[Path], marker: str | None = None, *, each_line: bool = False
) -> Iterator[str]:
    """Documents of text files: lines joined by line breaks, without one at the end.

    A line that starts with `marker` opens a document and is not part of one. Without a marker each
    file is one document, or with `each_line` every line. Empty documents are left out.
    Raises OSError, ValueError as `text_files.lines` does.
    """
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(
                f"{path} does not exist; give UTF-8 text files, plain, .gz, .xz, .zst or .bz2, "
                "one paragraph a line"
            )
        document: list[str] = []
        for line in text_files.lines(path):
            if marker is not None and line.startswith(marker):
                if any(document):
                    yield "\n".join(document)
                document = []
            elif not each_line:
                document.append(line)
            elif line:
                yield line
        if any(document):
            yield "\n".join(document)


class Counts(BaseModel):
    """The size of a corpus. Words are runs of non-white-space; bytes are those of UTF-8."""

    model_config = ConfigDict(frozen=True)

    documents: Annotated[int, Field(ge=1)]
    tokens: Annotated[int, Field(ge=1)]
    words: NonNegativeInt
    bytes: NonNegativeInt
    unknown: NonNegativeInt


class _Facts(BaseModel):
    """The contents of corpus.json. `tokenizer`: its fingerprint; None in older corpora."""

    counts: Counts
    vocabulary: Annotated[int, Field(ge=1)]
    dtype: Literal["uint16", "uint32"]
    tokenizer: str | None = None


class Corpus:
    """Tokenised documents on disk.

    tokens: uint16 or uint32 [N], each document as start symbol, text, end symbol.
    documents: int64 [D + 1], the beginning of each, and N. lines: int64, the beginning of each line
    that is not empty. tokenizer: the fingerprint of its tokenizer, if known.
    """

    def __init__(self, folder: Path) -> None:
        """Opens a folder of `prepare`. Raises FileNotFoundError, ValueError if it is damaged."""
        if not (folder / FACTS).exists():
            raise FileNotFoundError(f"{folder} has no prepared corpus; make one: convlm prepare")
        self.folder = folder
        try:
            facts = _Facts.model_validate_json((folder / FACTS).read_bytes())
        except ValidationError as error:
            raise self._broken(FACTS, complaint(error)) from None
        self.counts, self.vocabulary = facts.counts, facts.vocabulary
        self.tokenizer = facts.tokenizer
        expected = facts.counts.tokens * np.dtype(facts.dtype).itemsize
        size = (folder / TOKENS).stat().st_size
        if size != expected:
            raise self._broken(TOKENS, f"{size:,} bytes instead of {expected:,}")
        self.tokens: npt.NDArray[np.uint32] = np.memmap(
            folder / TOKENS, mode="r", dtype=facts.dtype
        )
        self.documents = self._positions(DOCUMENTS, None)
        self.lines = self._positions(LINES, "r")
        bounds = self.documents
        if (
            len(bounds) != facts.counts.documents + 1
            or (bounds[0], bounds[-1]) != (0, facts.counts.tokens)
            or np.diff(bounds).min() < 2
        ):
            raise self._broken(DOCUMENTS, f"its documents are not those that {FACTS} counts")
        if not 0 < self.lines[0] <= self.lines[-1] < facts.counts.tokens:
            raise self._broken(LINES, f"its lines are not in {TOKENS}")
        self.start_id = int(self.tokens[0])

    def ids(self, begin: int, end: int) -> npt.NDArray[np.int64]:
        """The tokens from `begin` to `end`, int64. Raises ValueError for an unknown id."""
        ids = np.asarray(self.tokens[begin:end], np.int64)
        if len(ids) and ids.max() >= self.vocabulary:
            what = f"it has the token {ids.max()}, but the vocabulary ends at {self.vocabulary - 1}"
            raise self._broken(TOKENS, what)
        return ids

    def check(self, vocabulary: int, start_id: int, tokenizer: str | None) -> None:
        """Raises ValueError unless a model's tokens are those of the corpus.

        tokenizer: the fingerprint of the model's tokenizer, if known.
        """
        if self.vocabulary != vocabulary:
            raise ValueError(
                f"model.vocabulary is {vocabulary}, but {self.folder} was prepared with a "
                f"tokenizer of {self.vocabulary} tokens"
            )
        if self.start_id != start_id:
            raise ValueError(
                f"the model's start_id is {start_id}, but the documents of {self.folder} begin "
                f"with the token {self.start_id}; prepare them with the model's tokenizer"
            )
        self.check_tokenizer(tokenizer)

    def check_tokenizer(self, fingerprint: str | None) -> None:
        """Raises ValueError if the corpus has another tokenizer, if both are known."""
        if self.tokenizer and fingerprint and self.tokenizer != fingerprint:
            raise ValueError(
                f"{self.folder} was prepared with another tokenizer than the model's; prepare it "
                "with that one"
            )

    def _positions(self, name: str, mode: Literal["r"] | None) -> npt.NDArray[np.int64]:
        try:
            positions = np.load(self.folder / name, mmap_mode=mode)
        except (ValueError, EOFError) as error:
            raise self._broken(name, f"it cannot be read: {error}") from None
        if (
            not isinstance(positions, np.ndarray)
            or positions.dtype != np.int64
            or positions.ndim != 1
        ):
            raise self._broken(name, "it is not a list of int64")
        if not len(positions):
            raise self._broken(name, "it is empty")
        return positions

    def _broken(self, name: str, what: str) -> ValueError:
        return ValueError(f"{self.folder / name}: {what}; {_ADVICE}")


def prepare(
    documents: Iterable[str], tokenizer: Tokenizer, folder: Path, *, end: str | None = None
) -> Counts:
    """Tokenises documents into `folder`, completely or not at all; `Corpus(folder)` opens it.

    A document ends with the end symbol, or with the token of `end`. Raises ValueError if there is
    no document or no such token, FileExistsError if another process writes the folder, OSError.
    """
    check_folder(folder, FACTS)
    end_id = tokenizer.end_id if end is None else _only_token(tokenizer, end)
    if end_id < 0:
        raise ValueError(f"the tokenizer has no token {end!r}")
    new = not folder.exists()
    try:
        with ExitStack() as stack:
            # they are renamed in the opposite order: without the first there is no corpus
            files = {
                name: stack.enter_context(atomic_file(folder / name, exclusive=True))
                for name in (FACTS, LINES, DOCUMENTS, TOKENS)
            }
            facts = _write(documents, tokenizer, end_id, files)
            (folder / FACTS).unlink(missing_ok=True)
    except BaseException:
        if new:
            with suppress(OSError):
                folder.rmdir()
        raise
    return facts.counts


def _write(
    documents: Iterable[str], tokenizer: Tokenizer, end_id: int, files: dict[str, IO[bytes]]
) -> _Facts:
    dtype = np.dtype(np.uint16 if tokenizer.size <= 1 << 16 else np.uint32)
    break_id = _only_token(tokenizer, "\n")  # a token by itself in both kinds of tokenizer
    bounds: list[int] = [0]
    lines: list[npt.NDArray[np.int64]] = []
    words = size = unknown = 0
    iterator = iter(documents)
    with tqdm(unit=" documents") as bar:
        while batch := list(islice(iterator, _DOCUMENTS_AT_ONCE)):
            for text, encoded in zip(batch, tokenizer.encode_many(batch), strict=True):
                ids = np.concatenate([[tokenizer.start_id], encoded.ids, [end_id]])
                files[TOKENS].write(ids.astype(dtype).tobytes())
                begins = np.concatenate([[1], np.flatnonzero(ids[:-1] == break_id) + 1])
                empty = np.isin(ids[begins], (break_id, tokenizer.end_id))
                lines.append(bounds[-1] + begins[~empty])
                bounds.append(bounds[-1] + len(ids))
                words += count_words(text)
                size += len(text.encode())
                unknown += int((encoded.ids == tokenizer.unknown_id).sum())
            bar.update(len(batch))
    if not any(map(len, lines)):
        raise ValueError("the files have no documents")
    _save(files[DOCUMENTS], bounds)
    _save(files[LINES], np.concatenate(lines))
    facts = _Facts(
        counts=Counts(
            documents=len(bounds) - 1, tokens=bounds[-1], words=words, bytes=size, unknown=unknown
        ),
        vocabulary=tokenizer.size,
        dtype="uint16" if dtype == np.uint16 else "uint32",
        tokenizer=tokenizer.fingerprint,
    )
    files[FACTS].write(facts.model_dump_json(indent=2).encode())
    return facts


def _save(file: IO[bytes], positions: Any) -> None:
    """Writes int64 as a .npy, through memory, because NumPy does not report a full disk."""
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(positions, np.int64))
    file.write(buffer.getbuffer())


def _only_token(tokenizer: Tokenizer, text: str) -> int:
    """The token of a text; -1 if it is not a single one."""
    ids = tokenizer.encode(text).ids
    return int(ids[0]) if len(ids) == 1 else -1


def windows(
    corpus: Corpus, count: int, length: int, start_id: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Training rows of random lines and the text after them, with the start symbol first.

    Returns inputs and targets, int64 [count, length]; a target of -100, where the next document
    would begin, is not counted.
    """
    chosen = corpus.lines[np.sort(rng.integers(len(corpus.lines), size=count))]
    rows = np.full((count, length + 1), -1, np.int64)
    rows[:, 0] = start_id
    for row, begin in zip(rows, chosen, strict=True):
        tokens = corpus.ids(begin, begin + length)
        row[1 : 1 + len(tokens)] = tokens
    targets = rows[:, 1:].copy()
    targets[(targets < 0) | (targets == start_id)] = -100
    inputs = rows[:, :-1]
    return np.where(inputs < 0, start_id, inputs), targets
