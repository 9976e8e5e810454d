"""Commands through a server: one that is running, or the application inside this process."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import typer
from tqdm import tqdm

from app.client.async_client import AsyncClient
from app.client.errors import ClientError
from app.client.files import Source
from app.client.rows import json_line
from app.client.score_file import provenance, score_rows, score_to_file
from app.settings import Settings

_POLL_SECONDS = 0.01
_STANDARD_OUTPUT = 1


@asynccontextmanager
async def connect(
    url: str | None, settings: Settings, tries: int = 5
) -> AsyncGenerator[AsyncClient]:
    """A client of the server at `url`, or of the application inside this process, without a port.

    Raises ClientError if the model cannot be loaded here.
    """
    if url is not None:
        async with AsyncClient(url, max_attempts=tries) as client:
            yield client
        return
    from app.main import create_app

    failures: list[Exception] = []
    lazy = settings.model_copy(update={"loading": "lazy"})
    app = create_app(lazy, failures.append, reload=False)
    async with app.router.lifespan_context(app):
        while not app.state.catalog.models:
            if failures:
                raise ClientError(str(failures[0]))
            await asyncio.sleep(_POLL_SECONDS)
        async with AsyncClient("http://localhost", transport=httpx.ASGITransport(app)) as client:
            yield client


async def score(
    url: str | None,
    settings: Settings,
    source: Source,
    field: str | None,
    options: Mapping[str, Any],
    out: Path | None,
    *,
    restart: bool,
    tries: int,
) -> None:
    """Scores the lines of a file to another file or standard output; prints their number."""
    with tqdm(total=source.size, unit="B", unit_scale=True, disable=None) as bar:

        def advance_bar(position: int) -> None:
            bar.update(position - bar.n)

        async with connect(url, settings, tries) as client:
            if out is None:
                source.check([_STANDARD_OUTPUT])
                facts = await provenance(client, field, options)
                count, errors = await score_rows(
                    client,
                    source,
                    field,
                    options,
                    lambda row: sys.stdout.buffer.write(json_line(row)),
                    facts["system_fingerprint"],
                    flush=lambda read: sys.stdout.buffer.flush(),
                    progress=advance_bar,
                )
            else:
                count, errors = await score_to_file(
                    client, source, field, options, out, restart=restart, progress=advance_bar
                )
    typer.echo(f"convlm: {count} lines scored, {errors} of them with an error", err=True)


async def score_text(
    url: str | None, settings: Settings, text: str, options: Mapping[str, Any]
) -> None:
    """Prints log-probability, surprisal in bits and text of every token, then the measures."""
    async with connect(url, settings, 1) as client:
        (scored,) = (await client.score(text, **options)).data
    assert scored.tokens is not None
    assert scored.logprobs is not None
    for token, logprob in zip(scored.tokens, scored.logprobs, strict=True):
        assert logprob is not None  # the first token has one too, given the start symbol
        typer.echo(f"{logprob:9.4f} {-logprob / math.log(2):8.3f} bits  {token!r}")
    for name in ("token_count", "perplexity", "word_perplexity", "bits_per_byte"):
        typer.echo(f"{name}: {getattr(scored, name)}")


async def print_next_tokens(
    url: str | None, settings: Settings, text: str, count: int, *, cache: bool
) -> None:
    """Prints the most probable next tokens."""
    async with connect(url, settings) as client:
        for candidate in (await client.next(text, top_k=count, cache=cache)).data:
            typer.echo(f"{math.exp(candidate.logprob):8.4f}  {candidate.token!r}")


async def generate(url: str, prompt: str, options: Mapping[str, Any]) -> None:
    """Prints a prompt and its continuation as it is generated."""
    async with AsyncClient(url) as client:
        pending = prompt  # printed with the first chunk, so that an error comes without it
        async with aclosing(client.stream(prompt, **options)) as chunks:
            async for chunk in chunks:
                pending += "".join(choice.text for choice in chunk.choices)
                typer.echo(pending, nl=False)
                pending = ""
        typer.echo()
