"""Arguments and options of the online commands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

URL = "http://127.0.0.1:8000"


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
