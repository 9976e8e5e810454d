"""A long prompt with `prompt_logprobs` while others keep the server busy: `make bench-long`.

What counts is that it is answered, and that the server holds little more than the answer.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import orjson

from model.core import bundle
from model.core.processor import machine
from tests.bench.scoring import add_options, read_lines
from tests.bench.served import resident, serving, session

_SAMPLE_SECONDS = 0.2


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--alternatives", type=int, default=5)
    parser.add_argument("--clients", type=int, default=8, help="of each kind besides")
    parser.add_argument("--precision", choices=["auto", "float32", "int8"], default="auto")
    options = parser.parse_args()
    loaded, lines = bundle.load(options.bundle), read_lines(options.text)
    ids: list[int] = []
    for encoded in itertools.cycle(loaded.tokenizer.encode_many(lines)):
        ids += encoded.ids.tolist()
        if len(ids) >= options.tokens:
            break
    with serving(options.bundle, options.precision) as url:
        (server,) = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        run = _Run(url, int(server), lines, {}, options.clients)
        asyncio.run(run.measure(ids[: options.tokens], options.alternatives))
    print(f"{machine()}\nbundle: {loaded.config.name} {loaded.fingerprint}\n")
    print("| figure | value |\n| --- | --: |")
    for name, value in run.figures.items():
        print(f"| {name} | {value} |")


@dataclass(slots=True)
class _Run:
    """What is asked of which process, and what has come of it."""

    url: str
    server: int
    lines: list[str]
    figures: dict[str, str]
    clients: int
    others: Counter[str] = field(default_factory=Counter)
    most: float = 0.0

    async def measure(self, ids: list[int], alternatives: int) -> None:
        """Others alone, then beside the long prompt."""
        async with session(self.url, 2 * self.clients + 1) as http:
            await self._score(http, iter(self.lines))
            idle = resident(self.server)
            busy = [asyncio.create_task(self._busy(http, n)) for n in range(2 * self.clients)]
            busy.append(asyncio.create_task(self._watch()))
            await asyncio.sleep(20)
            loaded, self.most = self.most, 0.0
            self.others.clear()
            body = {"prompt": ids, "max_tokens": 0, "echo": True, "prompt_logprobs": alternatives}
            began = time.perf_counter()
            async with http.post("/v1/completions", json=body, raise_for_status=True) as answer:
                size = 0
                async for part in answer.content.iter_any():
                    size += len(part)
            seconds = time.perf_counter() - began
            for task in busy:
                task.cancel()
            failures = await asyncio.gather(*busy, return_exceptions=True)
        assert all(isinstance(f, asyncio.CancelledError) for f in failures), failures
        others = ", ".join(f"{count:,} {name}" for name, count in self.others.items())
        self.figures |= {
            "tokens of the prompt": f"{len(ids):,}",
            "seconds": f"{seconds:.0f}",
            "requests of others answered meanwhile": others,
            "answer, MB": f"{size / 1e6:.0f}",
            "server, MB resident, idle": f"{idle:.0f}",
            "server, MB resident, others alone, most": f"{loaded:.0f}",
            "server, MB resident, with the long prompt, most": f"{self.most:.0f}",
            "above idle and the answer, MB": f"{self.most - idle - size / 1e6:.0f}",
        }

    async def _watch(self) -> None:
        while True:
            self.most = max(self.most, resident(self.server))
            await asyncio.sleep(_SAMPLE_SECONDS)

    async def _busy(self, http: aiohttp.ClientSession, number: int) -> None:
        lines = itertools.cycle(self.lines[number:])
        while True:
            await (self._score(http, lines) if number % 2 else self._generate(http, lines))

    async def _score(self, http: aiohttp.ClientSession, lines: Iterator[str]) -> None:
        body = {"input": list(itertools.islice(lines, 4))}
        async with http.post("/v1/score", json=body, raise_for_status=True) as answer:
            orjson.loads(await answer.read())
        self.others["score"] += 1

    async def _generate(self, http: aiohttp.ClientSession, lines: Iterator[str]) -> None:
        body = {"prompt": next(lines), "max_tokens": 100, "stream": True, "ignore_eos": True}
        async with http.post("/v1/completions", json=body, raise_for_status=True) as answer:
            assert (await answer.read()).endswith(b"[DONE]\n\n")
        self.others["streams"] += 1


if __name__ == "__main__":
    main()
