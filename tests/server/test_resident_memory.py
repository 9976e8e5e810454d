"""Memory does not grow with a text's length: what is held is the text, not what becomes of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from model.core.tokenizer import Tokenizer
from tests import texts
from tests.api.conftest import PATIENCE_SECONDS, eventually

ROOT = Path(__file__).parents[2]
TOKENS = 500_000
MOST_MEGABYTES = 200


@dataclass(frozen=True, slots=True)
class Process:
    """A server in a process of its own, and the memory that it takes."""

    pid: int
    client: httpx.Client

    def megabytes(self, name: str) -> float:
        """A figure of /proc/<pid>/status: VmRSS is what it has, VmHWM the most it ever had."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
        assert found is not None
        return int(found[1]) / 1024

    def forget_peak(self) -> None:
        """Makes the most it ever had what it has now."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")


@pytest.fixture(scope="module")
def process(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """`convlm serve`, which has answered a few requests."""
    log = tmp_path_factory.mktemp("memory") / "log"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("CONVLM_")},
        "CONVLM_THREADS": "1",
    }
    with log.open("w") as output:
        running = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "serve", "--bundle", str(tiny_folder), "--port", "0"],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        address = re.compile(r"Uvicorn running on (http://\S+)")
        eventually(lambda: bool(address.search(log.read_text())), "an address in the log")
        found = address.search(log.read_text())
        assert found is not None
        with httpx.Client(base_url=found[1], timeout=PATIENCE_SECONDS, trust_env=False) as client:
            eventually(lambda: client.get("/readyz").status_code == 200, "a loaded model")
            for _ in range(5):
                client.post("/v1/score", json={"input": [texts.ALICE] * 20}).raise_for_status()
                client.post("/v1/completions", json={"prompt": "a"}).raise_for_status()
            yield Process(running.pid, client)
    finally:
        running.terminate()
        running.wait()


def test_a_long_text_takes_little_memory(
    process: Process, tokenizer: Tokenizer, record_property: Any
) -> None:
    book = " ".join(texts.ALL) + "\n"
    text = book * (TOKENS // len(tokenizer.encode(book).ids) + 1)
    for detail in ("totals", "tokens"):
        idle = process.megabytes("VmRSS")
        process.forget_peak()
        body = json.dumps({"input": text, "detail": detail})
        size = 0
        tail = b""
        with process.client.stream("POST", "/v1/score", content=body) as response:
            assert response.status_code == 200
            for part in response.iter_bytes():
                size += len(part)
                tail = (tail + part)[-1000:]
        peak = process.megabytes("VmHWM")
        counted = re.search(rb'"totals":\{.*"token_count":(\d+)', tail)
        assert counted is not None
        assert int(counted[1]) >= TOKENS
        figures = f"{detail}: idle {idle:.0f} MB, peak {peak:.0f} MB, answer {size / 2**20:.0f} MB"
        record_property(f"memory of {detail}", figures)
        print(figures)
        assert peak - idle < MOST_MEGABYTES, figures
