"""What the commands say and take, but for files."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import cli
from app.client.client import Client
from app.settings import SHIPPED, Settings
from tests.api.conftest import PATIENCE_SECONDS, Server

ROOT = Path(__file__).parents[2]
OURS = {"CONVLM_THREADS": "1", "CONVLM_PRECISION": "float32"}


def test_a_text_is_scored_alike_with_and_without_a_server(
    server: Server, tiny_folder: Path
) -> None:
    text = ["score", "--text", "Alice was", "--context", "Then ", "--add-eos"]
    here = CliRunner().invoke(cli, [*text, "--bundle", str(tiny_folder)], env=OURS)
    there = CliRunner().invoke(cli, [*text, "--url", server.url])
    assert here.exit_code == there.exit_code == 0
    assert here.output == there.output
    (scored,) = server.ask(
        "/v1/score", input="Alice was", context="Then ", add_eos=True, detail="tokens"
    )["data"]
    assert [line.split("bits  ")[1] for line in here.output.splitlines()[:-4]] == [
        repr(token) for token in scored["tokens"]
    ]
    assert f"perplexity: {scored['perplexity']}" in here.output


def test_a_prompt_goes_on_alike_with_and_without_a_server(
    server: Server, tiny_folder: Path
) -> None:
    text = ["generate", "Alice was", "--max-tokens", "12", "--seed", "3"]
    here = CliRunner().invoke(cli, [*text, "--bundle", str(tiny_folder)], env=OURS)
    there = CliRunner().invoke(cli, [*text, "--url", server.url])
    assert here.exit_code == there.exit_code == 0
    assert here.output == there.output
    assert here.output.startswith("Alice was")
    assert len(here.output) > len("Alice was\n")


@pytest.mark.parametrize("remote", [False, True])
def test_a_prompt_that_is_refused_is_not_printed(
    server: Server, tiny_folder: Path, remote: bool
) -> None:
    where = ["--url", server.url] if remote else ["--bundle", str(tiny_folder)]
    over = ["generate", "Alice was", "--max-tokens", "1000000" if remote else "1", *where]
    refused = CliRunner().invoke(cli, over, env={**OURS, "CONVLM_MAX_REQUEST_TOKENS": "1"})
    assert refused.exit_code == 1
    assert not refused.stdout
    assert ("max_completion_tokens" if remote else "max_request_tokens") in refused.stderr


def test_a_text_is_not_printed_into_a_file() -> None:
    refused = CliRunner().invoke(cli, ["score", "--text", "a", "--out", "a.csv"])
    assert refused.exit_code == 1
    assert "--out" in refused.output


def test_the_last_line_feed_of_standard_input_is_no_text(server: Server) -> None:
    found = [
        [
            CliRunner().invoke(cli, [command, "-", "--url", server.url], input=text).output
            for text in ("Alice was", "Alice was\n", "Alice was\n\n")
        ]
        for command in ("next", "generate")
    ]
    for plain, ended, longer in found:
        assert plain == ended != longer
    assert found[1][0].startswith("Alice was")


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
def test_an_address_may_end_as_that_of_openais_client(server: Server, end: str) -> None:
    with Client(server.url + end) as client:
        assert client.models()


def test_a_bad_setting_is_named_as_it_is_set() -> None:
    refused = CliRunner().invoke(
        cli, ["serve"], env={"CONVLM_PORT": "99999", "CONVLM_THREADS": "x"}
    )
    assert refused.exit_code == 2
    assert "port (CONVLM_PORT): " in refused.output
    assert "65535, not '99999'" in refused.output
    assert "threads (CONVLM_THREADS): " in refused.output
    assert "pydantic" not in refused.output


def test_an_empty_variable_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOST", "BUNDLE", "BUNDLES", "THREADS"):
        monkeypatch.setenv(f"CONVLM_{name}", "")
    settings = Settings()
    assert (settings.host, settings.bundle, settings.bundles) == ("127.0.0.1", SHIPPED, None)
    assert not settings.names_bundle


def test_the_version_is_printed() -> None:
    assert CliRunner().invoke(cli, ["--version"]).output == version("convlm") + "\n"


def test_a_file_and_a_text_are_not_taken_both() -> None:
    refused = CliRunner().invoke(cli, ["score", "a.txt", "--text", "a"])
    assert refused.exit_code == 1
    assert "not both" in refused.output


def test_a_variable_that_is_no_setting_is_named(tiny_folder: Path) -> None:
    env = {**OURS, "CONVLM_MAX_TOPK": "3", "CONVLM_BUNDLE": str(tiny_folder / "none")}
    run = [sys.executable, "-m", "app.cli", "serve", "--port", "0"]
    ended = subprocess.run(
        run, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
    assert "CONVLM_MAX_TOPK is no setting" in ended.stderr
    assert "CONVLM_THREADS is no" not in ended.stderr


def test_a_port_that_is_taken_ends_the_server(tiny_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        run = [sys.executable, "-m", "app.cli", "serve", "--port", port]
        ended = subprocess.run(
            [*run, "--bundle", str(tiny_folder)],
            cwd=ROOT,
            env={**os.environ, **OURS},
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
    assert ended.returncode == 1
    assert "convlm serves" not in ended.stdout
    assert ended.stderr.startswith(f"convlm: cannot listen on 127.0.0.1, port {port}: Address")
    assert "\n" not in ended.stderr.strip()


def test_a_host_that_is_none_ends_the_server_at_once() -> None:
    ended = CliRunner().invoke(cli, ["serve", "--host", "nowhere.invalid"])
    assert ended.exit_code == 1
    assert ended.output.startswith("convlm: cannot listen on nowhere.invalid, port 8000: ")
