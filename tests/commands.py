"""Offline commands that are expected to fail."""

from __future__ import annotations

from typer.testing import CliRunner

from model.cli.main import offline


def refused(*arguments: object) -> str:
    """Runs a command that has to fail without a traceback; returns the one line it says."""
    done = CliRunner().invoke(offline, [str(argument) for argument in arguments])
    assert done.exit_code == 1, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    bars = ("documents/s", "tok/s")
    lines = done.stderr.splitlines()
    said = [line for line in lines if line and not any(bar in line for bar in bars)]
    assert len(said) == 1, done.stderr
    assert said[0].startswith("convlm: ")
    return said[0]
