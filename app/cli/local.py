"""Generation in the process, without a server: the same text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace

import typer

from app.catalog.catalog import Catalog
from app.engine.sampling.draw import Sampling
from app.engine.sequence import Generation
from app.errors import EngineError, RequestError
from app.lm.completing import complete
from app.lm.model import LanguageModel
from app.metrics import Metrics
from app.settings import Settings
from app.text.stops import TextStream
from model.cli.options import fail
from model.core.bundle import BundleError


@asynccontextmanager
async def _load(settings: Settings) -> AsyncGenerator[LanguageModel]:
    """The bundle's model; errors of it end the command with one line."""
    catalog = Catalog(settings.model_copy(update={"loading": "lazy"}), Metrics())
    try:
        await asyncio.to_thread(catalog.load)
        yield catalog.get(None)
    except (BundleError, EngineError, RequestError) as error:
        fail(error)
    finally:
        catalog.close()


async def generate(settings: Settings, prompt: str, count: int, sampling: Sampling) -> None:
    """Prints a prompt and its continuation as it is generated."""
    async with _load(settings) as model:
        (tokens,) = await model.prompts([prompt])
        tokenizer = model.tokenizer
        without_start = replace(sampling, banned=(tokenizer.start_id,))
        generation = Generation(without_start, count, frozenset({tokenizer.end_id}))
        stream = TextStream()
        pending = prompt  # printed with the first tokens, so that an error comes without it
        async with model.engine.caller() as caller:
            _, (parts,) = complete(caller, tokens, [generation], None, 1)
            async for part in parts:
                assert isinstance(part, list)  # the prompt is not scored
                for event in part:
                    raw = tokenizer.token_bytes[event.token]
                    pending += stream.feed(raw, last=event.finish is not None)
                typer.echo(pending, nl=False)
                pending = ""
        typer.echo()
