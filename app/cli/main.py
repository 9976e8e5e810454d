"""The command `convlm`: `serve`, the commands of texts and evaluations, and the offline commands.

Nothing heavy is imported here: each command imports what it needs when it runs.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli import evaluations, options, texts
from app.cli.options import check_output, set_streams, settings_from
from model.cli.options import fail, message_of

if TYPE_CHECKING:
    from app.catalog.catalog import Catalog
    from app.settings import Settings

cli = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)
_PRINTING = frozenset(
    {
        *("next", "generate", "blimp", "lambada", "describe"),
        *("evaluate", "wikitext", "ptb", "ngram-evaluate"),
    }
)
"""Commands that only print their results."""
_SWITCH_SECONDS = 5e-4


def main() -> None:
    """Entry point."""
    from model.cli.main import offline

    set_streams()
    cli.registered_commands += offline.registered_commands
    cli.registered_groups += offline.registered_groups
    try:
        cli()
    except OSError as error:  # of standard output: commands name their files themselves
        sys.exit(f"convlm: {message_of(error)}")


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        typer.echo(version("convlm"))
        raise typer.Exit


@cli.callback()
def convlm(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Score and generate text with a gated convolutional language model."""
    if context.invoked_subcommand in _PRINTING:
        check_output()


@cli.command()
def serve(
    host: options.Host = None,
    port: options.Port = None,
    bundle: options.BundleOption = None,
    bundles: options.Bundles = None,
    device: options.DeviceOption = None,
    precision: options.Precision = None,
) -> None:
    """Serve the HTTP API until interrupted.

    Every setting can also be given as an environment variable, CONVLM_<NAME>; see
    docs/reference/settings.md.
    """
    with _sigterm_ends_at_once():
        settings = settings_from(
            host=host, port=port, bundle=bundle, bundles=bundles, device=device, precision=precision
        )
        logging.basicConfig(
            level=settings.log_level.upper(),
            format="%(asctime)s %(levelname)s %(name)s %(message)s",
        )
        _warn_of_unknown_settings()
        if _serve_at(settings):
            raise typer.Exit(1)


@contextmanager
def _sigterm_ends_at_once() -> Iterator[None]:
    """Ends the process at SIGTERM until the server handles it.

    The first process of a container ignores a signal that it does not handle.
    """
    previous = signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _serve_at(settings: Settings) -> bool:
    """Serves at the address of the settings, if it is free. Returns whether the models failed."""
    from app.server.uvicorn_server import check_free

    address = f"{settings.host}, port {settings.port}"
    try:
        check_free(settings.host, settings.port)
    except OSError as error:
        reason = error.strerror or error
        fail(f"cannot listen on {address}: {reason}; choose others with --host and --port")
    try:
        return _serve(settings)
    except SystemExit:  # another process took the port in the meantime; uvicorn has logged it
        fail(f"cannot listen on {address}")


def _warn_of_unknown_settings() -> None:
    from app.settings import Settings

    for name in sorted(os.environ):
        known = name.removeprefix("CONVLM_").lower() in Settings.model_fields
        if name.startswith("CONVLM_") and not known:
            logging.getLogger(__name__).warning("%s is not a known setting and is ignored", name)


def _serve(settings: Settings) -> bool:
    """Serves until interrupted, or until the models fail. Returns whether they did."""
    import uvicorn

    from app.main import create_app
    from app.server import descriptors
    from app.server.http1 import bounded
    from app.server.uvicorn_server import Server, Stop

    def end_work() -> None:
        catalog.stop()
        app.state.unanswered.cancel()

    descriptors.raise_limit(settings.max_connections)
    app = create_app(settings, lambda _: server.fail(), owns_process=True)
    catalog: Catalog = app.state.catalog
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level,
        access_log=False,  # `RequestIds` writes a line with the request's name
        http=bounded(app.state.connections),
        backlog=descriptors.shares(descriptors.open_files_limit()).backlog,
        forwarded_allow_ips=[str(network) for network in settings.trusted_networks],
        ws="none",  # an offer of WebSocket is ignored like offers of other protocols
    )
    stop = Stop(
        settings.notice_seconds, settings.drain_seconds, catalog.leave, end_work, catalog.abandon
    )
    server = Server(config, stop)
    # long texts are tokenised on other threads: bounds how long these delay short requests
    sys.setswitchinterval(_SWITCH_SECONDS)
    server.run()
    return server.failed


cli.command()(texts.score)
cli.command("next")(texts.next_tokens)
cli.command()(texts.generate)
cli.command()(evaluations.blimp)
cli.command()(evaluations.lambada)
