"""The commands of README, tutorials and API reference run as they stand and give what is shown."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.settings import SHIPPED
from tests.bench.served import serving

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "docs" / "reference" / "api.md",
    *sorted((ROOT / "docs" / "tutorials").glob("*.md")),
]
WRITTEN_URL = "http://127.0.0.1:8000"
INSTALLS = re.compile(
    r"^\s*(make |\S*pip install|git clone|python3 -m venv|source |\S*convlm serve)", re.MULTILINE
)
"""Commands that the test does in its own way: it has an environment and a server."""

_FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_TOKEN = re.compile(r"\.\.\.|(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?(?!\w)|\w+|\S")
_SECONDS = 60
"""A bound for one block, far above what it takes."""


@dataclass(frozen=True, slots=True)
class Block:
    """A block of commands and the output that the document shows for it, if it shows any."""

    language: str
    code: str
    shown: str | None


def blocks_of(document: Path) -> list[Block]:
    """The blocks to run, in order; an output belongs to the block right before it."""
    fences = _FENCED.findall(document.read_text(encoding="utf-8"))
    next_fences = [*fences[1:], ("", "")]
    return [
        Block(language, code, output if kind in ("json", "text", "csv") else None)
        for (language, code), (kind, output) in zip(fences, next_fences, strict=True)
        if language in ("sh", "python") and not INSTALLS.search(code)
    ]


def missing(shown: str, printed: str) -> str | None:
    """The first part of a shown output that is not in the printed one; `...` stands for anything.

    White space does not count, and numbers with a point may differ by a few thousandths, as they
    do between processors.
    """
    tokens = _TOKEN.findall(printed)
    start = 0
    for part in re.split(r"\.\.\.", shown):
        wanted = _TOKEN.findall(part)
        ends = (
            begin + len(wanted)
            for begin in range(start, len(tokens) - len(wanted) + 1)
            if all(map(alike, wanted, tokens[begin : begin + len(wanted)]))
        )
        end = next(ends, None)
        if end is None:
            return part
        start = end
    return None


def alike(shown: str, printed: str) -> bool:
    """Whether two tokens are equal, or numbers that are nearly so."""
    if shown == printed:
        return True
    try:
        return "." in shown and float(shown) == pytest.approx(float(printed), rel=0.005, abs=0.02)
    except ValueError:
        return False


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server of the shipped model, with its default settings."""
    with serving(SHIPPED, "auto") as address:
        yield address


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables with which `convlm` and `python` are the ones of this checkout."""
    programs = tmp_path_factory.mktemp("bin")
    command = programs / "convlm"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m app.cli "$@"\n')
    command.chmod(0o755)
    return {
        **os.environ,
        "PATH": os.pathsep.join(
            [str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]
        ),
        "PYTHONPATH": str(ROOT),
        "NO_PROXY": "*",
        "no_proxy": "*",
    }


@pytest.mark.skipif(shutil.which("curl") is None, reason="the documents use curl")
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.relative_to(ROOT).as_posix())
def test_the_commands_of_a_document_give_what_it_shows(
    document: Path, url: str, environment: dict[str, str], tmp_path: Path
) -> None:
    blocks = blocks_of(document)
    assert blocks
    for block in blocks:
        code = block.code.replace(WRITTEN_URL, url)
        program = ["bash", "-e", "-c"] if block.language == "sh" else [sys.executable, "-c"]
        done = subprocess.run(
            [*program, code],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{block.code}\n{done.stderr}"
        if block.shown is not None:
            printed = done.stdout + done.stderr
            assert missing(block.shown, printed) is None, f"{block.code}\n{printed}"


def test_an_output_that_differs_is_noticed() -> None:
    assert missing('{"a": 1.5, ..., "d": "x y"}', '{"a":1.501,"b":2,"d":"x y"}') is None
    assert missing('{"a": 1.5}', '{"a": 1.6}') is not None
    assert missing('"count": 7', '"count": 8') is not None
    assert missing('"a", ..., "b"', '"b", "a"') is not None
    assert missing("-35.46", "35.46") is not None
