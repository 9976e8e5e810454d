"""What the online commands share: options, settings, standard streams, errors in one line."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from model.cli.options import fail

if TYPE_CHECKING:
    from app.settings import Settings

URL = "http://127.0.0.1:8000"
_STANDARD_ERROR = 2


def _utf8(text: str | None) -> str | None:
    """A text of the command line, whose bytes are UTF-8 in every locale.

    Raises BadParameter if they are not.
    """
    if text is None:
        return None
    try:
        return os.fsencode(text).decode()
    except UnicodeError:
        raise typer.BadParameter("must be UTF-8") from None


# several commands
BundleOption = Annotated[
    Path | None, typer.Option("--bundle", help="Folder of a bundle; the shipped model by default.")
]
UrlOption = Annotated[str, typer.Option("--url", help="Address of a running server.")]
ServerOption = Annotated[
    str | None,
    typer.Option(
        "--url", help="Address of a running server; unset, the model runs in the command."
    ),
]
CacheOption = Annotated[
    bool, typer.Option("--cache", help="Mix in a cache of the text's earlier words.")
]
LimitOption = Annotated[
    int | None,
    typer.Option(
        "--limit", min=1, help="Take this many, evenly spread over the file; all if unset."
    ),
]

# serve
Host = Annotated[str | None, typer.Option(help="Address to listen on (127.0.0.1 by default).")]
Port = Annotated[int | None, typer.Option(help="Port to listen on (8000 by default).")]
Bundles = Annotated[
    Path | None, typer.Option(help="Folder of bundles; each folder's name is its model's name.")
]
DeviceOption = Annotated[str | None, typer.Option(help="auto (CUDA if it works), cpu or cuda.")]
Precision = Annotated[
    str | None,
    typer.Option(help="auto (8 bits if they cost little quality), float32, float16 or int8."),
]

# score
Lines = Annotated[
    str | None,
    typer.Argument(help="Lines of text or JSON, plain or compressed; `-`: standard input."),
]
OneText = Annotated[
    str | None,
    typer.Option(callback=_utf8, help="Print every token of this text, instead of a file."),
]
Out = Annotated[
    Path | None,
    typer.Option(help=".jsonl, .csv or .parquet; unset, lines of JSON on standard output."),
]
Field = Annotated[
    str | None,
    typer.Option(
        help="Lines are JSON and this field is the text (by default `text` in .jsonl and .json)."
    ),
]
Plain = Annotated[
    bool, typer.Option("--plain", help="Lines are plain text, even if they look like JSON.")
]
Detail = Annotated[
    Literal["totals", "tokens"], typer.Option(help="Only sums, or lists of tokens too.")
]
Words = Annotated[bool, typer.Option("--words", help="Add the surprisal of every word.")]
Context = Annotated[str, typer.Option(callback=_utf8, help="Text before each line, not scored.")]
AddEos = Annotated[bool, typer.Option("--add-eos", help="Score the end symbol too.")]
Model = Annotated[str | None, typer.Option(help="One of the server's models.")]
Restart = Annotated[
    bool, typer.Option("--restart", help="Write --out from the beginning instead of resuming.")
]
Tries = Annotated[
    int, typer.Option(min=1, help="How often to ask a server that is busy or cannot be reached.")
]

# next, generate
TextSoFar = Annotated[
    str,
    typer.Argument(
        callback=_utf8, help="The text so far; `-`: standard input, without its last line feed."
    ),
]
PromptText = Annotated[
    str,
    typer.Argument(
        callback=_utf8,
        help="The text to continue; `-`: standard input, without its last line feed.",
    ),
]
TopK = Annotated[int, typer.Option(min=1, help="How many tokens to print.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Tokens to generate.")]
Temperature = Annotated[float, typer.Option(min=0, max=2, help="0 is greedy.")]
TopP = Annotated[
    float, typer.Option(min=0.01, max=1, help="Probability mass to sample from (nucleus sampling).")
]
Seed = Annotated[int, typer.Option(help="The same seed gives the same text.")]


def set_streams() -> None:
    """Makes the standard streams UTF-8 in every locale and on every system.

    A closed descriptor is replaced by the null device: otherwise the next file that is opened would
    get its number and receive what is written to the stream. Output to a closed standard error is
    dropped.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_ERROR:
        pass
    os.close(descriptor)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def check_output() -> None:
    """Ends the command if standard output is closed, before any work is done."""
    if sys.stdout is None:
        fail("standard output is closed")


def check_source(url: str | None, bundle: Path | None) -> None:
    """Ends the command if both are given: the server has its own bundles."""
    if url is not None and bundle is not None:
        fail("give --url for a server's model or --bundle for a model here, not both")


def read_text(text: str) -> str:
    """A text of the command line, or standard input for `-`.

    Of standard input without the last line feed, which `echo` adds, and without a byte order mark.
    """
    if text != "-":
        return text
    if sys.stdin is None:
        fail("standard input is closed")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict")
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        fail(f"standard input must be UTF-8: {error}")
    except OSError as error:
        fail(f"standard input: {error.strerror or error}")


def settings_from(**options: str | int | Path | None) -> Settings:
    """Settings from the environment and the options, which have precedence; None is unset.

    Ends the command if one is invalid.
    """
    from pydantic import ValidationError

    from app.settings import Settings

    given = {name: value for name, value in options.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        for one in error.errors():
            name = str(one["loc"][0])
            setting = f"{name} (CONVLM_{name.upper()})"
            typer.echo(f"convlm: {setting}: {one['msg']}, not {one['input']!r}", err=True)
        raise typer.Exit(2) from None


def run(work: Coroutine[None, None, None]) -> None:
    """Runs a command; prints one line for an error."""
    import asyncio

    from app.client.errors import ClientError

    try:
        asyncio.run(work)
    except BrokenPipeError:  # the reader has closed the pipe
        raise
    except (ClientError, OSError) as error:
        fail(error)
