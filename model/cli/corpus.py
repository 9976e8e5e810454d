"""The commands that read text files: `tokenizer`, `prepare` and `wikitext-prose`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import typer

from model.cli.options import Files, Marker, TokenizerFile, errors_in_one_line, fail


@errors_in_one_line()
def tokenizer(
    files: Files,
    out: Annotated[Path, typer.Option(help="The tokenizer.json to write.")],
    kind: Annotated[
        Literal["bpe", "word"],
        typer.Option(help="Byte-level BPE, or the most frequent words between white space."),
    ] = "bpe",
    size: Annotated[int, typer.Option(min=300, help="Tokens in the vocabulary.")] = 8192,
    marker: Marker = None,
) -> None:
    """Learn a tokenizer from text files; its tokens are sorted by falling frequency."""
    from model.core.tokenizer import by_frequency, train_bpe, train_words
    from model.data.corpus import read_documents

    def lines() -> Iterator[str]:
        empty = True
        for text in read_documents(files, marker):
            empty = False
            yield from text.split("\n")
        if empty:
            raise ValueError(f"{', '.join(map(str, files))}: there is no text")

    _check_readable_twice(files)
    _check_replaceable(out)
    if kind == "bpe":
        made = by_frequency(train_bpe(lines(), size), lines())
    else:
        made = train_words(lines(), size)
    made.save(out)
    typer.echo(f"{out}: {made.size} tokens")


def _check_replaceable(out: Path) -> None:
    """Raises FileExistsError if `out` is not empty and not a tokenizer."""
    from model.core.tokenizer import Tokenizer

    if not out.exists():
        return
    with suppress(ValueError):
        if out.is_file() and (not out.stat().st_size or Tokenizer.load(out)):
            return
    raise FileExistsError(f"{out} exists and is not a tokenizer; choose another file")


def _check_readable_twice(files: list[Path]) -> None:
    """Raises FileExistsError for a pipe, say, which is empty when it is read again."""
    from model.core.outputs import check_regular

    for path in files:
        check_regular(path, "this command reads it twice")


@errors_in_one_line()
def prepare(
    files: Files,
    tokenizer: TokenizerFile,
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    marker: Marker = None,
    each_line: Annotated[
        bool,
        typer.Option("--each-line", help="Every line is a document that ends with a line break."),
    ] = False,
) -> None:
    """Tokenise text files into a corpus that `train` and `evaluate` read."""
    from model.core.tokenizer import Tokenizer
    from model.data import corpus

    documents = corpus.read_documents(files, marker, each_line=each_line)
    end = "\n" if each_line else None
    counts = corpus.prepare(documents, Tokenizer.load(tokenizer), out, end=end)
    typer.echo(f"{out}: {counts!r}")


@errors_in_one_line()
def wikitext_prose(
    file: Annotated[Path, typer.Argument(help="WikiText's train file, plain or compressed.")],
    out: Annotated[Path, typer.Option(help="The text file to write.")],
    fill: Annotated[list[Path], typer.Option(help="Ordinary text whose rare words replace <unk>.")],
    marker: Annotated[str, typer.Option(help="The line that opens an article.")] = "%%DOC",
) -> None:
    """Write WikiText's training text as ordinary prose, to train on together with other prose.

    <unk> becomes a word of the other files that WikiText's file lacks, drawn at random.
    """
    from model.core.outputs import atomic_file
    from model.data.corpus import read_documents
    from model.data.text_files import lines
    from model.data.wikitext import prose, rare_words

    _check_readable_twice([file])
    if out.exists() and any(path.exists() and out.samefile(path) for path in (file, *fill)):
        fail(f"--out: {out} is an input file; choose another")
    known = frozenset(word for line in lines(file) for word in line.split())
    if not known:
        raise ValueError(f"{file} has no words")
    documents = read_documents(fill, marker)
    words = rare_words((line for text in documents for line in text.split("\n")), known)
    with atomic_file(out) as output:
        output.writelines(f"{line}\n".encode() for line in prose(lines(file), words, marker))
    typer.echo(f"{out}: {len(words):,} words were available to replace <unk>")
