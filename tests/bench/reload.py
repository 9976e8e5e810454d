"""Reloads under load: `make bench-reload TEXT=lines.txt`.

Clients score texts, score lines in bulk, and generate whole and as a stream, while the bundle is
exchanged for one of another fingerprint and back. What counts is that no request fails and that
memory comes back to its level.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import os
import platform
import shutil
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import orjson

from app.settings import Settings
from model.core.bundle import CARD, CHECKSUMS
from model.data import text_files
from tests.bench.served import metrics, resident, running, session

_SAMPLE_SECONDS = 0.2
_SETTLE_SECONDS = 5.0
_WARM_RELOADS = 2


def main() -> None:
    """Prints Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, help="a text file; each line that is not blank is sent")
    parser.add_argument("--seconds", type=float, default=60, help="of traffic")
    parser.add_argument("--reloads", type=int, default=10)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--bundle", type=Path, default=Settings().bundle)
    parser.add_argument("--precision", choices=["auto", "float32", "int8"], default="auto")
    options = parser.parse_args()
    lines = (line.strip() for line in text_files.lines(options.text))
    texts = [line for line in lines if line][:10_000]
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "bundles"
        variants = [Path(root) / "one", Path(root) / "other"]
        for number, variant in enumerate(variants):
            vary(options.bundle, variant, number)
        shutil.copytree(variants[0], folder / "model")
        settings = {"CONVLM_BUNDLES": str(folder), "CONVLM_BUNDLE": str(folder / "model")}
        with running(settings | {"CONVLM_PRECISION": options.precision}) as server:
            exchanged = itertools.cycle(variants[::-1])
            run = _Run(server.url, server.process.pid, texts, folder / "model", exchanged)
            asyncio.run(run.measure(options.seconds, options.reloads, options.clients))
            run.report(options)


def vary(source: Path, folder: Path, number: int) -> None:
    """A copy of a bundle with another model card, and so another fingerprint."""
    shutil.copytree(source, folder)
    (folder / CARD).write_text(f"variant {number}\n")
    sums = json.loads((folder / CHECKSUMS).read_text())
    sums[CARD] = hashlib.sha256((folder / CARD).read_bytes()).hexdigest()
    (folder / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n")


def exchange(folder: Path, variant: Path) -> None:
    """Puts a copy of a variant into the place of a bundle."""
    partial = folder.with_name(".new")
    shutil.copytree(variant, partial)
    shutil.rmtree(folder)
    partial.rename(folder)


@dataclass(slots=True)
class _Run:
    """What is sent and exchanged, and what has come of it."""

    url: str
    server: int
    texts: list[str]
    folder: Path
    variants: Iterator[Path]
    answers: Counter[str] = field(default_factory=Counter)
    fingerprints: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0
    reloads: list[float] = field(default_factory=list)
    """Seconds from the signal to the new model's place in the catalog."""
    samples: list[float] = field(default_factory=list)
    levels: list[tuple[str, float]] = field(default_factory=list)

    async def measure(self, seconds: float, reloads: int, clients: int) -> None:
        """Traffic with a few reloads to warm up, then what is reported."""
        await self._level("ready")
        await self._round(0.1 * seconds, 0, clients)
        await self._level("after traffic without reloads")
        await self._round(0.1 * seconds, _WARM_RELOADS, clients)
        await self._level(f"after {_WARM_RELOADS} reloads (before what is measured)")
        for counted in (self.answers, self.fingerprints, self.reloads, self.samples):
            counted.clear()
        self.slowest = 0.0
        await self._round(seconds, reloads, clients)
        await self._level(f"after {reloads} more reloads")

    async def _round(self, seconds: float, reloads: int, clients: int) -> None:
        end = time.perf_counter() + seconds
        watching = asyncio.create_task(self._watch())
        async with session(self.url, clients) as http, asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(self._client(http, number, end))
            for left in range(reloads, 0, -1):
                await asyncio.sleep(max(0.0, end - time.perf_counter()) / (left + 0.5))
                await self._reload()
        watching.cancel()

    async def _reload(self) -> None:
        await asyncio.to_thread(exchange, self.folder, next(self.variants))
        before, began = await self._metric("convlm_reloads_total"), time.perf_counter()
        os.kill(self.server, signal.SIGHUP)
        while await self._metric("convlm_reloads_total") == before:
            await asyncio.sleep(0.02)
        self.reloads.append(time.perf_counter() - began)

    async def _metric(self, name: str) -> float:
        found = await asyncio.to_thread(metrics, self.url)
        return sum(value for key, value in found.items() if key.split("{")[0] == name)

    async def _level(self, when: str) -> None:
        """Memory once nothing is left to end."""
        while await self._metric("convlm_models") != 1:
            await asyncio.sleep(0.1)
        await asyncio.sleep(_SETTLE_SECONDS)
        self.levels.append((when, resident(self.server)))

    async def _watch(self) -> None:
        while True:
            self.samples.append(resident(self.server))
            await asyncio.sleep(_SAMPLE_SECONDS)

    async def _client(self, http: aiohttp.ClientSession, number: int, end: float) -> None:
        kinds = (self._score, self._bulk, self._generate, self._stream)
        texts = itertools.cycle(self.texts[number:] + self.texts[:number])
        kind = kinds[number % len(kinds)]
        name = kind.__name__.strip("_")
        while time.perf_counter() < end:
            began = time.perf_counter()
            try:
                prints = await kind(http, texts)
            except Exception as error:  # a failure is what is looked for
                self.failures.append(f"{name}: {error!r}")
                continue
            self.slowest = max(self.slowest, time.perf_counter() - began)
            self.answers[name] += 1
            self.fingerprints.update(set(prints))

    async def _score(self, http: aiohttp.ClientSession, texts: Iterator[str]) -> list[str]:
        body = {"input": list(itertools.islice(texts, 4))}
        async with http.post("/v1/score", json=body, raise_for_status=True) as answer:
            return [(await answer.json())["system_fingerprint"]]

    async def _bulk(self, http: aiohttp.ClientSession, texts: Iterator[str]) -> list[str]:
        body = b"\n".join(orjson.dumps({"input": t}) for t in itertools.islice(texts, 100))
        async with http.post("/v1/score/stream", data=body, raise_for_status=True) as answer:
            *lines, summary = [orjson.loads(line) for line in (await answer.read()).splitlines()]
        assert (summary["lines"], summary["errors"], len(lines)) == (100, 0, 100), summary
        return [line["system_fingerprint"] for line in lines]

    async def _generate(self, http: aiohttp.ClientSession, texts: Iterator[str]) -> list[str]:
        body = {"prompt": next(texts), "max_tokens": 50, "ignore_eos": True}
        async with http.post("/v1/completions", json=body, raise_for_status=True) as answer:
            found = await answer.json()
        assert found["usage"]["completion_tokens"] == 50, found
        return [found["system_fingerprint"]]

    async def _stream(self, http: aiohttp.ClientSession, texts: Iterator[str]) -> list[str]:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        body = {"prompt": next(texts), "max_tokens": 500, "ignore_eos": True, **options}
        async with http.post("/v1/completions", json=body, raise_for_status=True) as answer:
            *events, done = (await answer.read()).decode().split("\n\n")[:-1]
        chunks = [orjson.loads(event.removeprefix("data: ")) for event in events]
        assert done == "data: [DONE]", done
        assert chunks[-1]["usage"]["completion_tokens"] == 500, chunks[-1]
        (one,) = {chunk["system_fingerprint"] for chunk in chunks}  # from its beginning to its end
        return [one]

    def report(self, options: argparse.Namespace) -> None:
        """Prints what was measured."""
        outcomes = {k: v for k, v in metrics(self.url).items() if "convlm_reloads_total" in k}
        print(f"machine: {platform.processor() or platform.machine()}, {os.cpu_count()} cores")
        print(f"{options.seconds:.0f} s, {options.clients} clients; all loads: {outcomes}")
        for failure in self.failures[:5]:
            print(f"failed: {failure}")
        counts = ", ".join(f"{count} {name}" for name, count in sorted(self.answers.items()))
        prints = ", ".join(f"{count} {name}" for name, count in self.fingerprints.items())
        print("| figure | value |\n| --- | --- |")
        print(f"| requests answered | {self.answers.total()} ({counts}) |")
        print(f"| requests failed | {len(self.failures)} |")
        print(f"| answers by fingerprint | {prints} |")
        print(f"| slowest request, s | {self.slowest:.2f} |")
        print(f"| reloads | {len(self.reloads)} |")
        median, most = statistics.median(self.reloads), max(self.reloads)
        print(f"| seconds of a reload, median and most | {median:.2f}, {most:.2f} |")
        print(f"| MB resident, most | {max(self.samples):.0f} |")
        for when, level in self.levels:
            print(f"| MB resident, {when} | {level:.0f} |")


if __name__ == "__main__":
    main()
