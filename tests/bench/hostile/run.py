"""Hostile clients against a server of its own: `make bench-hostile`.

One family after the other, each with normal clients beside it, whose answers are compared with
those of the idle server, and a probe of /livez every 20 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from model.core.processor import machine
from tests.bench.hostile.families import FAMILIES, Attack, Family
from tests.bench.hostile.report import Row, markdown
from tests.bench.hostile.target import Target, attacked
from tests.bench.hostile.watch import known, watching
from tests.bench.hostile.wire import Tally

_LEAD_SECONDS = 1.0
_RECOVERY_SECONDS = 90.0


def main() -> None:
    """Prints Markdown tables, and writes JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="*", default=[], help="a part of each one's name")
    parser.add_argument("--short", action="store_true", help="the worst families, and less of each")
    parser.add_argument("--seed", type=int, default=1, help="of the mutations")
    parser.add_argument("--mutations", type=int, help="how many (10,000; 1,000 in a short run)")
    parser.add_argument("--crowd", type=int, default=500, help="slow or silent clients at a time")
    parser.add_argument("--settle", type=float, default=10.0, help="seconds before memory counts")
    parser.add_argument("--descriptors", type=int, help="the server's limit, for all families")
    parser.add_argument("--port", type=int, default=0, help="of the server; 0 for a free one")
    parser.add_argument("--bundle", type=Path, help="the shipped one, unless another is named")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    options = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the server must not be left running
    rows = []
    for row in run(options):
        print(f"{row.name}: {row.seconds:.0f} s", file=sys.stderr, flush=True)
        rows.append(row)
        if options.json:  # after each family, so that a run that is broken off is not lost
            records = [row.record() for row in rows]
            options.json.write_text(json.dumps(records, indent=1) + "\n")
    print(f"{machine()}\n\n{markdown(rows)}")


def run(options: argparse.Namespace) -> Iterator[Row]:
    """The rows of the chosen families; each limit of descriptors has a server of its own."""
    chosen = [family for family in FAMILIES if _chosen(family, options)]
    limits = {family.name: family.descriptors or options.descriptors for family in chosen}
    for limit in dict.fromkeys(limits.values()):
        left = [family for family in chosen if limits[family.name] == limit]
        while left:
            with attacked(options.port, limit, options.bundle) as target:
                right = asyncio.run(known(target.port))
                healthy = True
                while left and healthy:
                    row = measure(target, left.pop(0), right, options)
                    healthy = row.recovered is not None  # else the others get a new server
                    yield row


def _chosen(family: Family, options: argparse.Namespace) -> bool:
    if options.families:
        return any(part in family.name for part in options.families)
    return family.worst or not options.short


def measure(
    target: Target, family: Family, right: tuple[list[object], str], options: argparse.Namespace
) -> Row:
    """One family with normal clients beside it, and what is left of it afterwards."""
    less = {"mutations": 1000, "body_seconds": 20.0, "reader_seconds": 30.0}
    more = dict(less) if options.short else {"mutations": 10_000}
    if options.mutations is not None:
        more["mutations"] = options.mutations
    attack = Attack(
        target.port,
        target.descriptors,
        crowd=options.crowd,
        seed=options.seed,
        mutations=int(more.pop("mutations")),
        **more,
    )
    before = target.state()
    target.forget_peak()
    with watching(target.port, right) as seen:
        time.sleep(_LEAD_SECONDS)
        began = time.monotonic()
        tally = asyncio.run(_attacked(family, attack))
        seconds = time.monotonic() - began
        time.sleep(_LEAD_SECONDS)
    recovered = target.recover(_RECOVERY_SECONDS)
    if target.process.poll() is not None:
        raise SystemExit(f"{family.name} ended the server:\n{target.log.read_text()[-4000:]}")
    peak = target.peak()
    time.sleep(options.settle)
    tracebacks, errors = target.logged(before.log_bytes)
    after = target.state()
    return Row(
        family.name,
        tally,
        seen,
        seconds,
        before,
        peak,
        after,
        recovered,
        tracebacks,
        errors,
    )


async def _attacked(family: Family, attack: Attack) -> Tally:
    return await family.run(attack)


if __name__ == "__main__":
    main()
