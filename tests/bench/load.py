"""Throughput and latency against offered load: `make bench-load TEXT=lines.txt`.

Lines arrive one a request at random moments (Poisson), whether or not the earlier ones have been
answered, so a server that falls behind shows it: a closed loop of clients would wait for it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib
import numpy as np

from model.core import bundle
from model.core.graph import Precision
from model.core.processor import machine
from tests.bench.scoring import CLIENTS, add_options, precisions, read_lines
from tests.bench.served import closed_loop, post, serving, session

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SHARES = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.2)
"""Offered load as a share of what a closed loop of clients gets."""
SECONDS = 8.0
_CLOSED_LINES = 400


@dataclass(frozen=True, slots=True)
class Point:
    """Tokens a second offered and answered; latencies in milliseconds."""

    precision: Precision
    share: float
    offered: float
    answered: float
    p50: float
    p99: float


def main() -> None:
    """Prints a Markdown table, and draws and writes if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--png", type=Path, help="where to draw the curves")
    parser.add_argument("--json", type=Path, help="where to write the points")
    options = parser.parse_args()
    loaded = bundle.load(options.bundle)
    print(f"{machine()}\nbundle: {loaded.config.name} {loaded.fingerprint}\n")
    points = list(run(loaded, read_lines(options.text)))
    print(markdown(points))
    if options.json:
        options.json.write_text(json.dumps([asdict(point) for point in points], indent=1) + "\n")
    if options.png:
        draw(points, options.png)


def run(loaded: bundle.Bundle, lines: list[str]) -> Iterator[Point]:
    """The points of each precision, by rising load."""
    rng = np.random.default_rng(0)
    lengths = [len(encoded.ids) for encoded in loaded.tokenizer.encode_many(lines)]
    mean = sum(lengths) / len(lengths)
    for precision in precisions(loaded):
        with serving(loaded.folder, precision) as url:
            chosen = rng.choice(len(lines), _CLOSED_LINES)
            bodies: list[dict[str, object]] = [{"input": lines[i]} for i in chosen]
            closed_loop(url, bodies, CLIENTS)
            most = sum(lengths[i] for i in chosen) / closed_loop(url, bodies, CLIENTS)
            for share in SHARES:
                count = round(share * most / mean * SECONDS)
                gaps = rng.exponential(mean / (share * most), count)
                sent = rng.choice(len(lines), count)
                tokens = sum(lengths[i] for i in sent)
                texts = [lines[i] for i in sent]
                seconds, latencies = asyncio.run(_offered(url, texts, np.cumsum(gaps).tolist()))
                p50, p99 = 1e3 * np.quantile(latencies, [0.5, 0.99])
                offered = tokens / float(gaps.sum())
                yield Point(precision, share, offered, tokens / seconds, float(p50), float(p99))


async def _offered(url: str, texts: list[str], moments: list[float]) -> tuple[float, list[float]]:
    """Seconds until the last answer, and those from each text's moment to its answer."""
    async with session(url, 10_000) as http:
        began = time.perf_counter()

        async def one(text: str, moment: float) -> float:
            await asyncio.sleep(began + moment - time.perf_counter())
            await post(http, {"input": text})
            return time.perf_counter() - began - moment

        waits = [one(text, moment) for text, moment in zip(texts, moments, strict=True)]
        latencies = await asyncio.gather(*waits)
        return time.perf_counter() - began, latencies


def markdown(points: list[Point]) -> str:
    """A table of the points."""
    rows = ["| precision | offered, tokens/s | answered, tokens/s | p50, ms | p99, ms |"]
    rows.append("| --- | --: | --: | --: | --: |")
    for p in points:
        row = (f"{p.offered:,.0f}", f"{p.answered:,.0f}", f"{p.p50:.0f}", f"{p.p99:.0f}")
        rows.append(f"| {p.precision} | {' | '.join(row)} |")
    return "\n".join(rows) + "\n"


def draw(points: list[Point], path: Path) -> None:
    """Throughput and latency against offered load."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for precision in dict.fromkeys(point.precision for point in points):
        own = [point for point in points if point.precision == precision]
        offered = [point.offered / 1e3 for point in own]
        left.plot(offered, [point.answered / 1e3 for point in own], "o-", label=precision)
        (line,) = right.plot(offered, [point.p50 for point in own], "o-", label=f"{precision}, p50")
        color = line.get_color()
        right.plot(offered, [p.p99 for p in own], "o--", color=color, label=f"{precision}, p99")
    left.set_ylabel("answered, thousand tokens/s")
    right.set_ylabel("latency, ms")
    right.set_yscale("log")
    for axes in (left, right):
        axes.set_xlabel("offered, thousand tokens/s")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
