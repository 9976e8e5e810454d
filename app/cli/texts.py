"""The commands `score`, `next` and `generate`."""

from __future__ import annotations

import signal
from collections.abc import Coroutine
from pathlib import Path
from types import FrameType

import typer

from app.cli import options
from app.cli.options import check_output, check_source, read_text, run, settings_from
from model.cli.options import fail

_ADVICE = "; --field NAME scores that field of lines of JSON, --plain scores lines as they are"
"""What to do if a file of lines looks like JSON or a table."""


def score(
    file: options.Lines = None,
    text: options.OneText = None,
    out: options.Out = None,
    field: options.Field = None,
    plain: options.Plain = False,
    detail: options.Detail = "totals",
    words: options.Words = False,
    context: options.Context = "",
    add_eos: options.AddEos = False,
    cache: options.CacheOption = False,
    model: options.Model = None,
    restart: options.Restart = False,
    tries: options.Tries = 5,
    url: options.ServerOption = None,
    bundle: options.BundleOption = None,
) -> None:
    """Score every line of a file, or print the tokens of one text.

    Run an interrupted command again to resume it. See docs/howto/bulk.md.
    """
    from app.cli import remote
    from app.client.files import Source

    if out is None:
        check_output()
    if plain and field is not None:
        fail("give --field for lines of JSON or --plain for lines of text, not both")
    check_source(url, bundle)
    body = {"detail": detail, "words": words, "context": context, "add_eos": add_eos}
    given = {k: v for k, v in {**body, "cache": cache, "model": model}.items() if v}
    settings = settings_from(bundle=bundle)
    if file is not None and text is None:
        lines_are_json = True if field is not None else (False if plain else None)
        source = Source(file, json=lines_are_json, advice=_ADVICE)
        key = field or ("text" if source.json else None)
        work = remote.score(url, settings, source, key, given, out, restart=restart, tries=tries)
        _run_resumably(work, file, out)
    elif text is not None and file is None:
        if out is not None or words:
            fail("--text prints a text's tokens: it takes neither --out nor --words")
        run(remote.score_text(url, settings, text, {**given, "detail": "tokens"}))
    else:
        what = "give a file, `-` for standard input, or --text"
        fail(what if file is None else f"{what}, not both")


def _run_resumably(work: Coroutine[None, None, None], file: str, out: Path | None) -> None:
    """Runs a command on a file; an interrupt says that running it again resumes it."""
    from app.client.partial import Partial

    # asyncio would only cancel the task, which blocks until the next line of standard input
    if file == "-" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        run(work)
    except KeyboardInterrupt:
        if out is not None and Partial.exists(out):
            typer.echo("convlm: interrupted; run the same command again to resume it", err=True)
        raise typer.Exit(130) from None


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def next_tokens(
    text: options.TextSoFar,
    top_k: options.TopK = 10,
    cache: options.CacheOption = False,
    url: options.ServerOption = None,
    bundle: options.BundleOption = None,
) -> None:
    """Print the most probable next tokens with their probabilities."""
    from app.cli import remote

    check_source(url, bundle)
    settings = settings_from(bundle=bundle)
    run(remote.print_next_tokens(url, settings, read_text(text), top_k, cache=cache))


def generate(
    prompt: options.PromptText = "",
    max_tokens: options.MaxTokens = 100,
    temperature: options.Temperature = 0.8,
    top_p: options.TopP = 0.95,
    seed: options.Seed = 0,
    url: options.ServerOption = None,
    bundle: options.BundleOption = None,
) -> None:
    """Print the continuation of a prompt as it is generated."""
    from app.cli import local, remote
    from app.engine.sampling.draw import Sampling

    check_source(url, bundle)
    if url is None:
        sampling = Sampling(temperature, 0, top_p, seed, 0)
        work = local.generate(settings_from(bundle=bundle), read_text(prompt), max_tokens, sampling)
    else:
        body = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
        work = remote.generate(url, read_text(prompt), body)
    run(work)
