"""What the online commands share: settings, standard streams, errors in one line."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from model.cli.options import fail

if TYPE_CHECKING:
    from app.settings import Settings

_STANDARD_ERROR = 2


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
    except BrokenPipeError:  # the reader has enough
        raise
    except (ClientError, OSError) as error:
        fail(error)
