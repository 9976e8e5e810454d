"""The command line's engine in the process: no server, the same results."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

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
from model.core.bundle import BundleError


@asynccontextmanager
async def _model(settings: Settings) -> AsyncGenerator[LanguageModel]:
    """The bundle's model; ends the command with a message when something is wrong with it."""
    catalog = Catalog(settings.model_copy(update={"loading": "lazy"}), Metrics())
    try:
        await asyncio.to_thread(catalog.load)
        yield catalog.get(None)
    except (BundleError, EngineError, RequestError) as error:
        typer.echo(f"convlm: {error}", err=True)
        raise typer.Exit(1) from None
    finally:
        catalog.close()


async def following(settings: Settings, text: str, count: int, *, cache: bool) -> None:
    """Prints the most probable next tokens."""
    async with _model(settings) as model:
        found, _ = await model.next_tokens(text, count, cache=cache)
        for candidate in found:
            typer.echo(f"{math.exp(candidate.logprob):8.4f}  {candidate.token!r}")


async def generate(settings: Settings, prompt: str, count: int, sampling: Sampling) -> None:
    """Prints a prompt's continuation as it comes."""
    async with _model(settings) as model:
        (tokens,) = await model.prompts([prompt])
        tokenizer = model.tokenizer
        keyed = Sampling(
            sampling.temperature,
            sampling.top_k,
            sampling.top_p,
            sampling.seed,
            sampling.choice,
            banned=(tokenizer.start_id,),
        )
        generation = Generation(keyed, count, frozenset({tokenizer.end_id}))
        stream = TextStream()
        shown = prompt  # with what follows, not in front of an error
        async with model.engine.caller() as caller:
            (parts,) = complete(caller, tokens, [generation], None, 1).choices
            async for part in parts:
                assert isinstance(part, list)  # the prompt is not scored
                for event in part:
                    raw = tokenizer.token_bytes[event.token]
                    shown += stream.feed(raw, last=event.finish is not None)
                typer.echo(shown, nl=False)
                shown = ""
        typer.echo()
