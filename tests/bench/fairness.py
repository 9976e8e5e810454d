"""Short requests beside one long text, in one run: `make bench-fairness TEXT=lines.txt`.

A text of 100,000 tokens is scored alone and while single texts of 20 tokens arrive five times a
second. What it loses is its time beyond the time for its own rows and those of the short texts.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator

import aiohttp
import numpy as np

from model.core import bundle
from model.core.processor import machine
from tests.bench.figures import Figures
from tests.bench.scoring import add_options, precisions, read_lines
from tests.bench.served import metrics, post, serving, session

LONG_TOKENS, SHORT_TOKENS = 100_000, 20
SECONDS_BETWEEN = 0.2


def main() -> None:
    """Prints a Markdown table for each precision of the bundle."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    options = parser.parse_args()
    loaded = bundle.load(options.bundle)
    print(f"{machine()}\nbundle: {loaded.config.name} {loaded.fingerprint}\n")
    for figures in run(loaded, read_lines(options.text), options.rounds):
        print(figures.markdown())


def run(loaded: bundle.Bundle, lines: list[str], rounds: int) -> Iterator[Figures]:
    """The figures of each precision."""
    long = _cut(loaded, "\n".join(lines), LONG_TOKENS)
    short = [_cut(loaded, line, SHORT_TOKENS) for line in lines if len(line.split()) > 20]
    for precision in precisions(loaded):
        figures = Figures(f"Short texts beside a long one, {precision}, {rounds} rounds")
        latencies: list[float] = []
        with serving(loaded.folder, precision) as url:
            for number in range(rounds + 1):
                alone, _ = asyncio.run(_scored(url, long, []))
                before = metrics(url)
                beside, taken = asyncio.run(_scored(url, long, short))
                if not number:  # the warm-up
                    continue
                rows = 1 + len(taken) * (SHORT_TOKENS + 1) / LONG_TOKENS
                figures.add("long text: time beyond that of all rows", beside / (alone * rows) - 1)
                figures.add("long text alone, tokens/s", LONG_TOKENS / alone)
                batch = _mean(before, metrics(url), "convlm_batch_duration_seconds")
                figures.add("short texts, p99 / time of a batch", _p99(taken) / batch)
                figures.add("time of a batch, ms", 1e3 * batch)
                latencies += taken
        figures.add("short texts, all rounds, p50, ms", 1e3 * float(np.median(latencies)))
        figures.add("short texts, all rounds, p99, ms", 1e3 * _p99(latencies))
        yield figures


async def _scored(url: str, long: str, short: list[str]) -> tuple[float, list[float]]:
    """Seconds of the long text, and of each short one that came meanwhile."""
    sent: list[asyncio.Task[float]] = []

    async def arriving(http: aiohttp.ClientSession) -> None:
        for text in short:
            await asyncio.sleep(SECONDS_BETWEEN)
            sent.append(asyncio.create_task(post(http, {"input": text})))

    async with session(url, 100) as http:
        others = asyncio.create_task(arriving(http))
        seconds = await post(http, {"input": long, "detail": "totals"})
        others.cancel()
        return seconds, [await task for task in sent]


def _cut(loaded: bundle.Bundle, text: str, tokens: int) -> str:
    cuts = loaded.tokenizer.encode(text).cuts
    return text[: cuts[min(tokens, len(cuts)) - 1]]


def _p99(values: list[float]) -> float:
    return float(np.quantile(values, 0.99, method="higher"))


def _mean(before: dict[str, float], after: dict[str, float], name: str) -> float:
    seconds, count = (after[f"{name}_{k}"] - before[f"{name}_{k}"] for k in ("sum", "count"))
    return seconds / count


if __name__ == "__main__":
    main()
