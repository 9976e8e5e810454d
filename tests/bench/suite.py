"""Every ratio of one run: `make bench TEXT=lines.txt ARGS='--out results'`.

Scoring beside the raw loop, the raw loop beside its products, generation, fairness, and throughput
and latency against offered load, as Markdown, JSON and a chart.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import onnxruntime as ort

from model.core import bundle
from model.core.processor import machine
from tests.bench import fairness, generation, load, products, scoring
from tests.bench.figures import Figures


def main() -> None:
    """Prints the tables as they come and writes all three files at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    scoring.add_options(parser)
    parser.add_argument("--out", type=Path, default=Path("bench"), help="folder for the files")
    options = parser.parse_args()
    loaded = bundle.load(options.bundle)
    lines = scoring.read_lines(options.text)
    head = (
        f"{machine()}; onnxruntime {ort.__version__}; bundle {loaded.config.name} "
        f"{loaded.fingerprint}; {datetime.now(UTC):%Y-%m-%d %H:%M} UTC\n"
    )
    print(head, flush=True)
    tables = [head]
    records = []
    for figures in _figures(loaded, lines, options.rounds):
        tables.append(figures.markdown())
        records.append(figures.record())
        print(tables[-1], flush=True)
    points = list(load.run(loaded, lines))
    tables.append(load.markdown(points))
    print(tables[-1])
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "bench.md").write_text("\n".join(tables))
    record = {"machine": head.strip(), "figures": records, "load": [asdict(p) for p in points]}
    (options.out / "bench.json").write_text(json.dumps(record, indent=1) + "\n")
    load.draw(points, options.out / "load.png")


def _figures(loaded: bundle.Bundle, lines: list[str], rounds: int) -> Iterator[Figures]:
    yield from scoring.run(loaded, lines, rounds)
    yield products.run(loaded, lines[:300], rounds)
    yield from generation.run(loaded, rounds)
    yield from fairness.run(loaded, lines, rounds)


if __name__ == "__main__":
    main()
