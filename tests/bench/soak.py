"""Half an hour at 80 % of the capacity: `make bench-soak TEXT=lines.txt`.

Requests of every endpoint arrive at random moments, right ones, hostile ones, and some whose
clients leave in the middle of a body, a wait or a stream. The bundle is exchanged now and then, and
the engine fails with some texts, in a way of `faulty_server` (`--fault`). What counts is that
memory, descriptors, threads and temporary files come back to their levels, that no admitted token
is forgotten, and that the same request has the same bits throughout.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import resource
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
import numpy as np
import uvloop

from app.settings import Settings
from tests.bench.faulty_server import poisoned
from tests.bench.open_loop import poisson
from tests.bench.reload import exchange, vary
from tests.bench.scoring import CLIENTS, introduced, read_lines
from tests.bench.served import Running, metrics, resident, running
from tests.bench.soak_clients import Clients, table

_SETTLE_SECONDS = 10.0
_IDLE_CONNECTION_SECONDS = 2.0
"""Less than the server leaves a connection open, so that none is ended as it is used."""
_CAPACITY_SECONDS = 20.0
_LONGEST = 1000
_HUNG_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What the server holds. seconds: since the load began. files: in its temporary folder."""

    seconds: float
    megabytes: float
    descriptors: int
    threads: int
    files: int
    queue_tokens: float
    models: float


def main() -> None:
    """Prints Markdown tables."""
    options = _parser().parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    bad = poisoned(introduced(options.bundle).tokenizer.size) if options.fault else None
    texts = [line for line in read_lines(options.text) if len(line) <= _LONGEST][:10_000]
    with tempfile.TemporaryDirectory() as root:
        soak = _Soak(Path(root), options, texts, bad)
        with soak.serve() as server:
            uvloop.run(soak.run(server))
            soak.report(server)
        left = [path.name for path in soak.temporary.iterdir()]
        print(f"after SIGTERM: status {server.process.returncode}, temporary files: {left or 0}")
    if options.json:
        samples = [asdict(sample) for sample in soak.samples]
        options.json.write_text(json.dumps(samples, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, help="a text file; its lines of up to 1,000 characters")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--share", type=float, default=0.8, help="load by the capacity")
    parser.add_argument("--reload-minutes", type=float, default=3.0, help="0: no reloads")
    parser.add_argument("--fault", default="exception", help="of the engine; empty: none")
    parser.add_argument("--tree", type=Path, help="checkout whose server is started; default: this")
    parser.add_argument("--sample-seconds", type=float, default=5.0)
    parser.add_argument("--bundle", type=Path, default=Settings().bundle)
    parser.add_argument("--json", type=Path, help="where to write the samples")
    return parser


class _Soak:
    """A server with its folders, the load, and what the server held meanwhile.

    bad: ids of a text with which the engine fails; None if it never does.
    """

    def __init__(
        self, root: Path, options: argparse.Namespace, texts: list[str], bad: list[int] | None
    ) -> None:
        self._options, self._texts, self._bad = options, texts, bad
        self._folder = root / "bundles" / "model"
        variants = [root / "one", root / "other"]
        for number, variant in enumerate(variants):
            vary(options.bundle, variant, number)
        shutil.copytree(variants[0], self._folder)
        self._variants = itertools.cycle(variants[::-1])
        self.temporary = root / "temporary"
        self.temporary.mkdir()
        self.samples: list[Sample] = []
        self._levels: list[Sample] = []
        self._counts: Counter[tuple[str, str]] = Counter()
        self._wrong: list[str] = []
        self._expected: dict[str, bytes] = {}
        self._rate = self._began = 0.0

    def serve(self) -> AbstractContextManager[Running]:
        """The server."""
        settings = {
            "CONVLM_BUNDLES": str(self._folder.parent),
            "CONVLM_BUNDLE": str(self._folder),
            "TMPDIR": str(self.temporary),
        }
        fault = self._options.fault
        launch = ("tests.bench.faulty_server", fault) if fault else ("app.cli",)
        return running(settings, self._options.tree, launch)

    async def run(self, server: Running) -> None:
        """Measures the capacity, offers the load, and waits for the end of its work."""
        self._began = time.perf_counter()
        async with self._open(server.url) as clients:
            await clients.ask_all_fixed()
            self._rate = await _capacity(clients)
            if self._options.reload_minutes:
                await self._reload(server)
        await asyncio.sleep(_SETTLE_SECONDS)
        self._levels.append(self._sample(server))
        self._began, seconds = time.perf_counter(), 60 * self._options.minutes
        print(f"capacity: {self._rate:.1f} requests/s of the mixture", flush=True)
        async with self._open(server.url) as clients:
            others = [asyncio.create_task(self._watch(server))]
            if self._options.reload_minutes:
                others.append(asyncio.create_task(self._reloads(server)))
            await _offer(clients, self._options.share * self._rate, seconds)
            for task in others:
                task.cancel()
            await asyncio.wait(others)
            await clients.ask_all_fixed()
        self._counts, self._wrong = clients.counts, clients.wrong
        await asyncio.sleep(_SETTLE_SECONDS)
        self._levels.append(self._sample(server))

    @asynccontextmanager
    async def _open(self, url: str) -> AsyncIterator[Clients]:
        """Clients, whose connections are closed at the end."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_CONNECTION_SECONDS)
        timeout = aiohttp.ClientTimeout(total=_HUNG_SECONDS)
        async with aiohttp.ClientSession(url, connector=connector, timeout=timeout) as http:
            yield Clients(url, http, self._texts, self._bad, expected=self._expected)

    async def _watch(self, server: Running) -> None:
        while True:
            self.samples.append(await asyncio.to_thread(self._sample, server))
            await asyncio.sleep(self._options.sample_seconds)

    def _sample(self, server: Running) -> Sample:
        process = Path(f"/proc/{server.process.pid}")
        counters = metrics(server.url)
        return Sample(
            time.perf_counter() - self._began,
            resident(server.process.pid),
            len(list((process / "fd").iterdir())),
            len(list((process / "task").iterdir())),
            sum(path.is_file() for path in self.temporary.rglob("*")),
            _total(counters, "convlm_queue_tokens"),
            _total(counters, "convlm_models"),
        )

    async def _reloads(self, server: Running) -> None:
        while True:
            await asyncio.sleep(60 * self._options.reload_minutes)
            await self._reload(server)

    async def _reload(self, server: Running) -> None:
        await asyncio.to_thread(exchange, self._folder, next(self._variants))
        os.kill(server.process.pid, signal.SIGHUP)

    def report(self, server: Running) -> None:
        """Prints what was measured."""
        counters = metrics(server.url)
        print(table(self._counts))
        for message in self._wrong[:10]:
            print(f"wrong: {message}")
        print(
            "| figure | at the beginning | most | 10 s after the end |\n| --- | --: | --: | --: |"
        )
        for name in ("megabytes", "descriptors", "threads", "files", "queue_tokens", "models"):
            before, after = (getattr(sample, name) for sample in self._levels)
            most = max(getattr(sample, name) for sample in self.samples)
            values = (f"{value:,.0f}" for value in (before, most, after))
            print(f"| {name.replace('_', ' ')} | {' | '.join(values)} |")
        print(f"\nslope of memory, second half: {slope(self.samples):.2f} MB/min")
        for name in ("convlm_reloads", "convlm_engine_errors"):
            print(
                f"{name}: { {k: v for k, v in counters.items() if k.startswith(f'{name}_total')} }"
            )


async def _capacity(clients: Clients) -> float:
    """Requests a second of clients in a closed loop."""
    began = time.perf_counter()

    async def client() -> None:
        while time.perf_counter() - began < _CAPACITY_SECONDS:
            await clients.ask()

    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(client())
    return clients.counts.total() / (time.perf_counter() - began)


async def _offer(clients: Clients, rate: float, seconds: float) -> None:
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for moment in poisson(np.random.default_rng(0), rate, seconds):
            await asyncio.sleep(max(0.0, began + moment - time.perf_counter()))
            group.create_task(clients.ask())


def _total(counters: dict[str, float], name: str) -> float:
    return sum(value for key, value in counters.items() if key.partition("{")[0] == name)


def slope(samples: list[Sample]) -> float:
    """Megabytes a minute that memory grows in the second half, by least squares.

    Samples while two models are loaded are left out: where a reload falls would decide it. Not a
    number if fewer than two are left.
    """
    middle = samples[-1].seconds / 2
    kept = [s for s in samples if s.seconds >= middle and s.models <= 1]
    if len(kept) < 2:
        return float("nan")
    minutes = [sample.seconds / 60 for sample in kept]
    return float(np.polyfit(minutes, [sample.megabytes for sample in kept], 1)[0])


if __name__ == "__main__":
    main()
