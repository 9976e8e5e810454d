"""What the commands say and take, but for files."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli.main import cli
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
    assert "CONVLM_MAX_TOPK is not a known setting" in ended.stderr
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


def commanded(where: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """What a command does whose streams a shell has set; `where` follows the command."""
    run = [sys.executable, "-m", "app.cli", *arguments]
    script = f"{shlex.join(run)} {where}"
    environment = {**os.environ, **OURS, **variables}
    return subprocess.run(
        ["sh", "-c", script],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        timeout=PATIENCE_SECONDS,
    )


def said_once(done: subprocess.CompletedProcess[bytes], message: str) -> None:
    """One line, and nothing of Python's."""
    assert done.stderr.decode().startswith(f"convlm: {message}")
    assert done.stderr.count(b"\n") == 1
    assert done.returncode == 1
    assert not done.stdout


@pytest.mark.parametrize(
    "command",
    [
        ["score", "a.txt"],
        ["next", "a"],
        ["blimp", "none"],
        ["describe", "none"],
    ],
)
def test_a_standard_output_that_is_closed_is_named_before_any_work(command: list[str]) -> None:
    said_once(commanded(">&- </dev/null", *command), "standard output is closed")


@pytest.mark.parametrize("command", ["score", "next", "generate"])
def test_a_standard_input_that_is_closed_is_named(server: Server, command: str) -> None:
    done = commanded("<&-", command, "-", "--url", server.url)
    said_once(done, "standard input")
    assert b"closed" in done.stderr


def test_a_file_is_scored_with_every_stream_closed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Alice was\n")
    rows = []
    for name, where in (("a.jsonl", ""), ("b.jsonl", "<&- >&- 2>&-")):
        out = str(tmp_path / name)
        source = str(tmp_path / "a.txt")
        done = commanded(where, "score", source, "--out", out, "--url", server.url)
        assert done.returncode == 0, done.stderr.decode()
        rows.append((tmp_path / name).read_bytes())
    assert rows[0] == rows[1]
    assert rows[0].count(b"\n") == 1
    done = commanded("2>&-", "score", str(tmp_path / "a.txt"), "--url", server.url)
    assert done.stdout == rows[0]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_text_comes_in_and_goes_out_as_utf8_whatever_the_system_says(
    server: Server, encoding: str
) -> None:
    for command in (["generate", "-", "--max-tokens", "3"], ["generate", "“naïve”", "--seed", "1"]):
        asked = [*command, "--url", server.url]
        where = "" if "-" not in command else "<<'X'\n\ufeff“naïve”\nX"
        plain = commanded(where, *asked)
        other = commanded(where, *asked, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
        assert (other.returncode, other.stdout, other.stderr) == (0, plain.stdout, b"")
        assert other.stdout.decode().startswith("“naïve”")
    said_once(
        commanded("", "blimp", "none“", PYTHONIOENCODING=encoding),
        "none“: No such file or directory",
    )


@pytest.mark.parametrize(
    ("command", "variables"),
    [("next", {"PYTHONIOENCODING": "latin-1"}), ("generate", {"LC_ALL": "C"})],
)
def test_standard_input_that_is_no_utf8_is_refused(
    server: Server, command: str, variables: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"caf\xe9\n")
    where = f"<{shlex.quote(str(tmp_path / 'a'))}"
    done = commanded(where, command, "-", "--url", server.url, **variables)
    said_once(done, "standard input must be UTF-8: ")


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "Alice", "--max-tokens", "200"],
        ["next", "Alice", "--top-k", "100"],
        ["score", "README.md"],
    ],
)
def test_a_reader_who_has_enough_ends_a_command_quietly(server: Server, command: list[str]) -> None:
    done = commanded("| true", *command, "--url", server.url)
    assert not done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(
    "command",
    [
        ["next", "a"],
        ["generate", "a"],
        ["score", "README.md"],
        ["describe", "model/recipes/gcnn-8.toml"],
    ],
)
def test_an_output_that_is_full_is_named_once(server: Server, command: list[str]) -> None:
    where = [] if command[0] == "describe" else ["--url", server.url]
    said_once(commanded(">/dev/full", *command, *where), "standard output: No space left on device")


def test_lines_that_look_like_json_are_scored_when_they_are_said_to_be_text(
    server: Server, tmp_path: Path
) -> None:
    source = tmp_path / "a.txt"
    source.write_text('{"text": "Alice"}\n')
    run = ["score", str(source), "--url", server.url]
    refused = CliRunner().invoke(cli, run)
    assert refused.exit_code == 1
    assert "a.txt: it looks like JSON" in refused.stderr
    assert "--field" in refused.stderr
    assert "--plain" in refused.stderr
    counts = []
    for told in (["--plain"], ["--field", "text"]):
        done = CliRunner().invoke(cli, [*run, *told])
        assert done.exit_code == 0
        counts.append(json.loads(done.stdout)["byte_count"])
    assert counts == [17, 5]
    both = CliRunner().invoke(cli, [*run, "--plain", "--field", "text"])
    assert both.exit_code == 1
    assert "not both" in both.stderr


@pytest.mark.parametrize("command", [["score", "--text", "a"], ["next", "a"], ["generate", "a"]])
def test_a_server_and_a_bundle_are_not_taken_both(server: Server, command: list[str]) -> None:
    done = CliRunner().invoke(cli, [*command, "--url", server.url, "--bundle", "runs/other"])
    assert done.exit_code == 1
    assert "not both" in done.stderr


def test_a_text_of_the_command_line_is_utf8_whatever_the_locale_says(server: Server) -> None:
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    printed = [
        subprocess.run(
            [
                sys.executable,
                "-m",
                "app.cli",
                "score",
                "--text",
                "na\u00efve".encode(),
                "--url",
                server.url,
            ],
            env=changed,
            cwd=ROOT,
            capture_output=True,
            check=True,
            timeout=120,
        ).stdout
        for changed in (environment, {**os.environ, "PYTHONUTF8": "1"})
    ]
    assert printed[0] == printed[1]
    assert "\u00ef" in printed[0].decode()
