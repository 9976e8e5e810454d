"""The commands `blimp` and `lambada`: evaluations through a server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from app.cli.options import URL, LimitOption, UrlOption, run

if TYPE_CHECKING:
    from app.client.async_client import AsyncClient
    from app.client.scoring import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")


def blimp(
    file: Annotated[
        Path, typer.Argument(help="BLiMP's pairs: .jsonl, also as .gz, .xz, .zst or .bz2.")
    ],
    url: UrlOption = URL,
    limit: LimitOption = None,
) -> None:
    """Print a running server's accuracy on BLiMP's minimal pairs.

    The good sentence of a pair must have the higher probability; the end symbol is not scored, and
    a tie is wrong. See docs/howto/evaluate.md.
    """
    from app.client import blimp as task

    run(_evaluate(task.read, task.judge, task.table, "pairs", file, url, limit))


def lambada(
    file: Annotated[
        Path, typer.Argument(help="LAMBADA: .jsonl, or plain text; also as .gz, .xz, .zst or .bz2.")
    ],
    url: UrlOption = URL,
    limit: LimitOption = None,
) -> None:
    """Print a running server's perplexity and accuracy on LAMBADA's last words.

    A word is right if each of its tokens is the most probable one. See docs/howto/evaluate.md.
    """
    from app.client import lambada as task

    run(_evaluate(task.read, task.predict, task.table, "passages", file, url, limit))


async def _evaluate(
    read: Callable[[Path], Sequence[Item]],
    evaluate: Callable[[AsyncClient, Sequence[Item], Progress], Awaitable[Sequence[Result]]],
    table: Callable[[Sequence[Result]], str],
    unit: str,
    file: Path,
    url: str,
    limit: int | None,
) -> None:
    """Prints the table of an evaluation's results, with a progress bar on the way."""
    from tqdm import tqdm

    from app.client.async_client import AsyncClient
    from app.client.scoring import spread

    items = spread(read(file), limit)
    async with AsyncClient(url) as client:
        with tqdm(total=len(items), unit=f" {unit}", disable=None) as bar:
            results = await evaluate(client, items, bar.update)
    typer.echo(table(results))
