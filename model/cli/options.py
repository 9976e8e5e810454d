"""What the offline commands share: options, and, with the online ones, errors in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

Files = Annotated[
    list[Path],
    typer.Argument(help="UTF-8 text files, plain, .gz, .xz, .zst or .bz2; a line is a paragraph."),
]
Marker = Annotated[
    str | None,
    typer.Option(
        help="A line that starts with this opens a document; without it, a file is a document."
    ),
]
CheckpointFile = Annotated[Path, typer.Argument(help="A best.pt or last.pt.")]
TokenizerFile = Annotated[Path, typer.Option("--tokenizer", help="A tokenizer.json.")]
TrainCorpus = Annotated[Path, typer.Option("--train", help="A prepared corpus to learn from.")]
CacheOption = Annotated[
    bool, typer.Option("--cache", help="Mix in a cache of the document's earlier words.")
]
LinesOption = Annotated[bool, typer.Option(help="Score every line as a text of its own.")]
ScoredFile = Annotated[
    Path, typer.Option(help="WikiText-2's test or valid file, plain or compressed.")
]
FullFile = Annotated[Path, typer.Option(help="WikiText-103's file of the same articles.")]

_MISSING = "this command needs the training packages, PyTorch among them; `make dev` installs them"


def fail(error: Exception | str) -> NoReturn:
    """Ends the command with one line on standard error."""
    typer.echo(f"convlm: {' '.join(message_of(error).split())}", err=True)
    raise typer.Exit(1)


def message_of(error: Exception | str) -> str:
    """The error in words, without the system's error number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'standard output'}: {error.strerror}"
    return str(error)


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Ends the command with one line if packages are missing or an expected error occurs."""
    try:
        yield
    except ImportError as error:
        fail(_MISSING if error.name else error)  # ours have no name, but a message
    except (OSError, ValueError, FloatingPointError) as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            raise  # of standard output: the entry point handles it
        fail(error)
