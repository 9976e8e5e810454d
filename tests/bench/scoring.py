"""Scoring over HTTP beside the raw session loop, in one run: `make bench TEXT=lines.txt`.

The raw loop runs planned batches one after the other, with the same rows and head outputs, on the
same number of threads: no tokenising, no HTTP, no scheduling. Rounds of both alternate, so that a
noisy machine disturbs both alike, and the median of the rounds' ratios is quoted.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import httpx
import numpy as np

from app.engine.planner import plan
from app.engine.precision import Wanted
from app.engine.scheduler import Budget, Request, Scheduler
from app.engine.sequence import Sequence
from app.engine.session import Session
from app.engine.states import Slots
from app.settings import Settings
from model import bundle
from model.data import open_text
from model.graph import FlatBatch


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, help="a text file; each line that is not blank is sent")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lines", type=int, default=400, help="lines of a round")
    parser.add_argument("--texts", type=int, default=1, help="texts of a request")
    parser.add_argument("--bundle", type=Path, default=Settings().bundle)
    parser.add_argument("--precision", choices=["auto", "float32", "int8"], default="auto")
    options = parser.parse_args()
    with open_text(options.text) as file:
        lines = [line.strip() for line in file if line.strip()]
    if len(lines) < options.lines:
        parser.error(f"{options.text} has {len(lines)} lines, fewer than --lines")
    rng = np.random.default_rng(0)
    rounds = [
        [lines[i] for i in rng.choice(len(lines), options.lines, replace=False)]
        for _ in range(options.rounds + 1)
    ]
    with serving(options.bundle, options.precision) as url:
        _report(options, url, rounds)


def _report(options: argparse.Namespace, url: str, rounds: list[list[str]]) -> None:
    loaded = bundle.load(options.bundle)
    session = Session(loaded, "cpu", 0, 64, options.precision)
    ratios, served_rates, raw_rates = [], [], []
    before: dict[str, float] = {}
    for number, lines in enumerate(rounds):
        batches, tokens = planned(loaded, lines, session.multiple)
        raw = tokens / run_raw(session, batches)
        served = tokens / asyncio.run(_run_served(url, lines, options.clients, options.texts))
        if number == 0:  # warm-up
            before = _metrics(url)
            continue
        ratios.append(served / raw)
        served_rates.append(served)
        raw_rates.append(raw)
    after = _metrics(url)
    kinds = ("score", "halo", "dummy", "prefill", "decode")
    rows = {k: _delta(before, after, f'convlm_rows_total{{kind="{k}"}}') for k in kinds}
    total = sum(rows.values())
    count = _delta(before, after, "convlm_batch_rows_count")
    print(f"machine: {platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    print(f"bundle: {loaded.config.name} {loaded.fingerprint} in {session.precision}")
    print(f"{options.clients} clients, {options.texts} texts a request, {options.rounds} rounds")
    print("| figure | median | min | max |\n| --- | --- | --- | --- |")
    for name, values in (
        ("served / raw loop", ratios),
        ("served tokens/s", served_rates),
        ("raw loop tokens/s", raw_rates),
    ):
        middle = statistics.median(values)
        print(f"| {name} | {middle:.4g} | {min(values):.4g} | {max(values):.4g} |")
    print(f"| rows per batch | {total / count:.1f} | | |")
    for kind in ("dummy", "halo"):
        print(f"| {kind} rows | {100 * rows[kind] / total:.2f} % | | |")


@contextmanager
def serving(folder: Path, precision: Wanted) -> Iterator[str]:
    """A server of its own that is ready; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port)]
    environment = {**os.environ, "CONVLM_LOG_LEVEL": "warning", "CONVLM_BUNDLE": str(folder)}
    environment["CONVLM_PRECISION"] = precision
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            for _ in range(600):
                try:
                    if httpx.get(f"{url}/readyz").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()


def planned(loaded: bundle.Bundle, lines: list[str], multiple: int) -> tuple[list[FlatBatch], int]:
    """The batches of a scheduler that has all lines at once, and the tokens they score."""
    config = loaded.config
    settings = Settings()
    scheduler = Scheduler(
        config.model.receptive_field,
        Budget(settings.max_batch_tokens, settings.max_stream_batch_tokens),
        Slots(64),
    )
    sequences = [
        Sequence(np.concatenate([[config.start_id], encoded.ids]).astype(np.int64))
        for encoded in loaded.tokenizer.encode_many(lines)
    ]
    scheduler.add(Request(), sequences)
    batches = []
    nothing = np.zeros(2 * settings.max_batch_tokens, np.float32)
    while picked := scheduler.pick():
        batches.append(plan([a.piece for a in picked], config.model.taps, multiple))
        scheduler.settle(picked, nothing, nothing[:, None])
    return batches, sum(len(s.tokens) - 1 for s in sequences)


def run_raw(session: Session, batches: list[FlatBatch]) -> float:
    """Seconds that batches take, one after the other."""
    began = time.perf_counter()
    for batch in batches:
        session.run(batch)
    return time.perf_counter() - began


async def _run_served(url: str, lines: list[str], clients: int, texts: int) -> float:
    waiting = [lines[i : i + texts] for i in range(0, len(lines), texts)]

    async def client(http: aiohttp.ClientSession) -> None:
        while waiting:
            async with http.post("/v1/score", json={"input": waiting.pop()}) as answer:
                answer.raise_for_status()
                await answer.read()

    connector = aiohttp.TCPConnector(limit=clients)
    async with aiohttp.ClientSession(url, connector=connector, raise_for_status=True) as http:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client(http))
        return time.perf_counter() - began


def _metrics(url: str) -> dict[str, float]:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    found = (re.fullmatch(r"(\S+) (\S+)", line) for line in lines if not line.startswith("#"))
    return {match[1]: float(match[2]) for match in found if match}


def _delta(before: dict[str, float], after: dict[str, float], name: str) -> float:
    return after.get(name, 0.0) - before.get(name, 0.0)


if __name__ == "__main__":
    main()
