"""The command `convlm`: serve, score, next, generate, blimp, lambada; mounts `model.cli.main`."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal, NoReturn

import typer

from app.settings import Settings

cli = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
BundleOption = Annotated[
    Path | None, typer.Option("--bundle", help="Folder of a bundle; the shipped model by default.")
]
_SWITCH_SECONDS = 5e-4
_STANDARD_ERROR = 2
_PRINTING = frozenset(
    {
        *("next", "generate", "blimp", "lambada", "describe"),
        *("evaluate", "wikitext", "ptb", "ngram-evaluate"),
    }
)
"""Commands whose result is what they print, and nothing else."""
_OTHERWISE = "; --field NAME scores that field of lines of JSON, --plain scores lines as they stand"
_URL = "http://127.0.0.1:8000"
UrlOption = Annotated[str, typer.Option("--url", help="Address of a running server.")]
ServerOption = Annotated[
    str | None,
    typer.Option(
        "--url", help="Address of a running server; unset, the model runs in the command."
    ),
]
LimitOption = Annotated[
    int | None,
    typer.Option("--limit", min=1, help="Take so many, evenly spread over the file; all if unset."),
]


def _utf8(text: str | None) -> str | None:
    """A text of the command line, whose bytes are UTF-8 whatever the locale says.

    Raises BadParameter if they are not.
    """
    if text is None:
        return None
    try:
        return os.fsencode(text).decode()
    except UnicodeError:
        raise typer.BadParameter("must be UTF-8") from None


def main() -> None:
    """Entry point."""
    from model.cli.main import offline

    _set_streams()

    for command in offline.registered_commands:
        if command not in cli.registered_commands:
            cli.registered_commands.append(command)
    for group in offline.registered_groups:
        if group not in cli.registered_groups:
            cli.registered_groups.append(group)
    try:
        cli()
    except OSError as error:  # commands tell of their files themselves
        sys.exit(f"convlm: {_message(error)}")


def _set_streams() -> None:
    """Makes text in and out UTF-8, whatever the locale and the system say.

    A descriptor that is closed is not left to the next file that is opened, which would be taken
    for a stream by whatever writes to that. What is written to a closed standard error is dropped.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_ERROR:
        pass
    os.close(descriptor)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(version("convlm"))
        raise typer.Exit


@cli.callback()
def convlm(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Score and generate text with a gated convolutional language model."""
    if context.invoked_subcommand in _PRINTING:
        _check_output()


@cli.command()
def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on (127.0.0.1 by default).")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (8000 by default).")] = None,
    bundle: BundleOption = None,
    bundles: Annotated[
        Path | None, typer.Option(help="Folder of bundles, each a model by its folder's name.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto (CUDA if it works), cpu or cuda.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="auto (8 bits where they cost little), float32, float16 or int8."),
    ] = None,
) -> None:
    """Serve the HTTP API until interrupted.

    Every setting can also be given as an environment variable, CONVLM_<NAME>; see
    docs/reference/settings.md.
    """
    import uvicorn

    from app.main import create_app
    from app.server.http1 import Http1
    from app.server.uvicorn_server import Server, check_free

    settings = _settings(
        host=host,
        port=port,
        bundle=bundle,
        bundles=bundles,
        device=device,
        precision=precision,
    )
    logging.basicConfig(
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    for name in sorted(os.environ):
        known = name.removeprefix("CONVLM_").lower() in Settings.model_fields
        if name.startswith("CONVLM_") and not known:
            logging.getLogger(__name__).warning("%s is no setting, and not used", name)
    where = f"{settings.host}, port {settings.port}"
    try:
        check_free(settings.host, settings.port)
    except OSError as error:
        reason = error.strerror or error
        _fail(OSError(f"cannot listen on {where}: {reason}; --host and --port take others"))
    failures: list[Exception] = []

    def give_up(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    app = create_app(settings, give_up, owns_process=True)

    def stop_work() -> None:
        app.state.catalog.stop()
        app.state.unanswered.cancel()

    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level,
        access_log=False,  # `RequestIds` writes a line with the request's name
        http=Http1,
        ws="none",  # an offer of WebSocket is passed over as those of other protocols are
    )
    server = Server(config, settings.drain_seconds, stop_work)
    # long texts are read on other threads: how long these keep the interpreter from short requests
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        server.run()
    except SystemExit:  # somebody else was faster; uvicorn has logged it
        _fail(OSError(f"cannot listen on {where}"))
    if failures:
        raise typer.Exit(1)


@cli.command()
def score(
    file: Annotated[
        str | None,
        typer.Argument(help="Lines of text or JSON, also packed; `-`: standard input."),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(callback=_utf8, help="Print every token of this text, instead of a file."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help=".jsonl, .csv or .parquet; unset, lines of JSON on standard output."),
    ] = None,
    field: Annotated[
        str | None,
        typer.Option(help="Lines are JSON and this field is the text (`text` in .jsonl, .json)."),
    ] = None,
    plain: Annotated[
        bool,
        typer.Option("--plain", help="Lines are text as they stand, whatever it looks like."),
    ] = False,
    detail: Annotated[
        Literal["totals", "tokens"], typer.Option(help="Sums alone, or lists of tokens too.")
    ] = "totals",
    words: Annotated[
        bool, typer.Option("--words", help="The surprisal of every word of a line, too.")
    ] = False,
    context: Annotated[
        str, typer.Option(callback=_utf8, help="Text before each line, not scored.")
    ] = "",
    add_eos: Annotated[bool, typer.Option("--add-eos", help="Score the end symbol too.")] = False,
    cache: Annotated[
        bool, typer.Option("--cache", help="Mix in what the text has said so far.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="One of the server's models.")] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin --out anew instead of going on.")
    ] = False,
    tries: Annotated[
        int, typer.Option(min=1, help="How often a server that gives no answer is asked.")
    ] = 5,
    url: ServerOption = None,
    bundle: BundleOption = None,
) -> None:
    """Score every line of a file, or print the tokens of one text.

    A command that was interrupted goes on where it was when it is given again. See
    docs/howto/bulk.md.
    """
    from app.cli import remote
    from app.client.files import Source
    from app.client.partial import Partial

    if out is None:
        _check_output()
    if plain and field is not None:
        _fail(ValueError("give --field for lines of JSON or --plain for lines of text, not both"))
    _check_source(url, bundle)
    if (file is None) == (text is None):
        what = "give a file, `-` for standard input, or --text"
        _fail(ValueError(what if file is None else f"{what}, not both"))
    options = {
        "detail": detail,
        "words": words,
        "context": context,
        "add_eos": add_eos,
        "cache": cache,
        "model": model,
    }
    given = {name: value for name, value in options.items() if value}
    settings = _settings(bundle=bundle)
    if text is not None:
        if out is not None or words:
            _fail(ValueError("--text prints a text's tokens: it takes neither --out nor --words"))
        _run(remote.score_text(url, settings, text, {**given, "detail": "tokens"}))
        return
    assert file is not None
    lines_are_json = True if field is not None else (False if plain else None)
    source = Source(file, json=lines_are_json, otherwise=_OTHERWISE)
    read_as = field or ("text" if source.json else None)
    work = remote.score(url, settings, source, read_as, given, out, restart=restart, tries=tries)
    # asyncio would only ask the work to end, which waits for the next line
    if file == "-" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        _run(work)
    except KeyboardInterrupt:
        if out is not None and Partial.begun(out):
            typer.echo("convlm: interrupted; the same command goes on where it was", err=True)
        raise typer.Exit(130) from None


@cli.command("next")
def next_tokens(
    text: Annotated[
        str,
        typer.Argument(
            callback=_utf8, help="The text so far; `-`: standard input, without its last line feed."
        ),
    ],
    top_k: Annotated[int, typer.Option(min=1, help="How many tokens to print.")] = 10,
    cache: Annotated[
        bool, typer.Option("--cache", help="Mix in what the text has said so far.")
    ] = False,
    url: ServerOption = None,
    bundle: BundleOption = None,
) -> None:
    """Print the most probable next tokens with their probabilities."""
    from app.cli import local, remote

    _check_source(url, bundle)
    if url is None:
        _run(local.following(_settings(bundle=bundle), _read(text), top_k, cache=cache))
    else:
        _run(remote.following(url, _read(text), top_k, cache=cache))


@cli.command()
def generate(
    prompt: Annotated[
        str,
        typer.Argument(
            callback=_utf8,
            help="The text to go on from; `-`: standard input, without its last line feed.",
        ),
    ] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 100,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 is greedy.")] = 0.8,
    top_p: Annotated[float, typer.Option(min=0.01, max=1, help="Share of mass kept.")] = 0.95,
    seed: Annotated[int, typer.Option(help="The same seed, the same text.")] = 0,
    url: ServerOption = None,
    bundle: BundleOption = None,
) -> None:
    """Print text that goes on from a prompt, as it is generated."""
    from app.cli import local, remote
    from app.engine.sampling.draw import Sampling

    _check_source(url, bundle)
    if url is None:
        sampling = Sampling(temperature, 0, top_p, seed, 0)
        _run(local.generate(_settings(bundle=bundle), _read(prompt), max_tokens, sampling))
    else:
        options = {"max_tokens": max_tokens, "temperature": temperature}
        _run(remote.generate(url, _read(prompt), {**options, "top_p": top_p, "seed": seed}))


@cli.command()
def blimp(
    file: Annotated[
        Path, typer.Argument(help="BLiMP's pairs: .jsonl, also as .gz, .xz, .zst or .bz2.")
    ],
    url: UrlOption = _URL,
    limit: LimitOption = None,
) -> None:
    """Print a running server's accuracy on BLiMP's minimal pairs.

    The good sentence of a pair must be more probable as a whole; the end symbol is not scored,
    and a tie is wrong. See docs/howto/evaluate.md.
    """
    from tqdm import tqdm

    from app.client import blimp as task
    from app.client.scoring import connect, spread

    async def run() -> str:
        pairs = spread(task.read(file), limit)
        async with connect(url) as client:
            with tqdm(total=len(pairs), unit=" pairs", disable=None) as bar:
                return task.table(await task.judge(client, pairs, bar.update))

    _print_evaluation(run())


@cli.command()
def lambada(
    file: Annotated[
        Path, typer.Argument(help="LAMBADA: .jsonl, or plain text; also as .gz, .xz, .zst or .bz2.")
    ],
    url: UrlOption = _URL,
    limit: LimitOption = None,
) -> None:
    """Print a running server's perplexity and accuracy on LAMBADA's last words.

    A word is right if each of its tokens is the most probable at its place. See
    docs/howto/evaluate.md.
    """
    from tqdm import tqdm

    from app.client import lambada as task
    from app.client.scoring import connect, spread

    async def run() -> str:
        passages = spread(task.read(file), limit)
        async with connect(url) as client:
            with tqdm(total=len(passages), unit=" passages", disable=None) as bar:
                return task.table(await task.foresee(client, passages, bar.update))

    _print_evaluation(run())


def _print_evaluation(table: Coroutine[None, None, str]) -> None:
    """Prints what an evaluation through a server finds."""

    async def run() -> None:
        typer.echo(await table)

    _run(run())


def _check_source(url: str | None, bundle: Path | None) -> None:
    """Ends the command if both are given: the server has bundles of its own."""
    if url is not None and bundle is not None:
        _fail(ValueError("give --url for a server's model or --bundle for a model here, not both"))


def _run(work: Coroutine[None, None, None]) -> None:
    """Runs a command, or prints the one line that says why not."""
    import asyncio

    from app.client.errors import ClientError

    try:
        asyncio.run(work)
    except BrokenPipeError:  # whoever reads has enough
        raise
    except (ClientError, OSError) as error:
        _fail(error)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _fail(error: Exception) -> NoReturn:
    typer.echo(f"convlm: {_message(error)}", err=True)
    raise typer.Exit(1)


def _message(error: Exception) -> str:
    """What went wrong in words, without the system's number for it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'standard output'}: {error.strerror}"
    return str(error)


def _settings(
    *,
    host: str | None = None,
    port: int | None = None,
    bundle: Path | None = None,
    bundles: Path | None = None,
    device: str | None = None,
    precision: str | None = None,
) -> Settings:
    """Settings from the environment, options first. Ends the command on a bad one."""
    from pydantic import ValidationError

    options = {
        "host": host,
        "port": port,
        "bundle": bundle,
        "bundles": bundles,
        "device": device,
        "precision": precision,
    }
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        for one in error.errors():
            name = str(one["loc"][0])
            place = f"{name} (CONVLM_{name.upper()})"
            typer.echo(f"convlm: {place}: {one['msg']}, not {one['input']!r}", err=True)
        raise typer.Exit(2) from None


def _check_output() -> None:
    """Ends the command if standard output is closed, before any work for it is done."""
    if sys.stdout is None:
        _fail(OSError("standard output is closed"))


def _read(text: str) -> str:
    """A text of the command line; of standard input without its last line feed, which `echo`
    adds, and without a byte order mark."""
    if text != "-":
        return text
    if sys.stdin is None:
        _fail(OSError("standard input is closed"))
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict")
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        _fail(ValueError(f"standard input must be UTF-8: {error}"))
    except OSError as error:
        _fail(OSError(f"standard input: {error.strerror or error}"))
