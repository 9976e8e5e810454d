"""What a family of attacks did, as rows of Markdown tables and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from tests.bench.hostile.target import State
from tests.bench.hostile.watch import Seen
from tests.bench.hostile.wire import Tally

_MOST_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Row:
    """A family's figures. recovered: seconds until nothing was left to do, None if never."""

    name: str
    tally: Tally
    seen: Seen
    seconds: float
    before: State
    peak: float
    after: State
    recovered: float | None
    tracebacks: int
    log_errors: int

    def record(self) -> dict[str, Any]:
        """Everything, for JSON, with the figures of the probes in place of each."""
        names = (field.name for field in fields(self))
        plain = {name: getattr(self, name) for name in names}
        counters = {"outcomes": dict(self.tally.outcomes), "faults": dict(self.tally.faults)}
        return {
            **plain,
            "tally": {f.name: getattr(self.tally, f.name) for f in fields(self.tally)} | counters,
            "seen": {
                **asdict(self.seen),
                "probes": _quantiles(self.seen.probes),
                "new_probes": _quantiles(self.seen.new_probes),
            },
            "before": asdict(self.before),
            "after": asdict(self.after),
        }


def _quantiles(milliseconds: list[float]) -> dict[str, float]:
    names, shares = ("p50", "p99", "p99.9", "longest"), (0.5, 0.99, 0.999, 1.0)
    found = np.quantile(milliseconds or [0.0], shares)
    return dict(zip(names, map(float, found), strict=True))


def markdown(rows: list[Row]) -> str:
    """Three tables: answers, the others' waiting, what the server holds; then what was wrong."""
    return "\n".join([*_answers(rows), "", *_waiting(rows), "", *_held(rows), "", *_wrong(rows)])


def _table(columns: list[str], rows: list[list[str]]) -> list[str]:
    head = [f"| {' | '.join(columns)} |", f"| --- |{' --: |' * (len(columns) - 1)}"]
    return head + [f"| {' | '.join(row)} |" for row in rows]


def _answers(rows: list[Row]) -> list[str]:
    columns = ["family", "requests", "outcomes", "5xx", "hangs", "malformed", "s"]
    return _table(
        columns,
        [
            [
                row.name,
                f"{row.tally.sent:,}",
                ", ".join(f"{name}: {n:,}" for name, n in sorted(row.tally.outcomes.items())),
                str(row.tally.server_errors),
                str(row.tally.hangs),
                str(row.tally.faults.total()),
                f"{row.seconds:.0f}",
            ]
            for row in rows
        ],
    )


def _waiting(rows: list[Row]) -> list[str]:
    columns = ["family", "/livez p50, ms", "p99", "p99.9", "longest"]
    columns += ["new connection: p50", "p99", "p99.9", "longest", "lost"]
    columns += ["a ticker's gap, ms", "the watcher's", "normal answers", "failures", "refusals"]
    columns += ["worst score, ms", "worst stream, ms"]
    return _table(
        columns,
        [
            [
                row.name,
                *(f"{value:,.1f}" for value in _quantiles(row.seen.probes).values()),
                *(f"{value:,.1f}" for value in _quantiles(row.seen.new_probes).values()),
                str(row.seen.failed_probes),
                f"{row.seen.gap:,.1f}",
                f"{row.seen.lateness:,.1f}",
                f"{row.seen.answers + row.seen.streams:,}",
                str(len(row.seen.failures)),
                str(row.seen.refused),
                f"{row.seen.worst_score:,.0f}",
                f"{row.seen.worst_stream:,.0f}",
            ]
            for row in rows
        ],
    )


def _held(rows: list[Row]) -> list[str]:
    columns = ["family", "MB before", "peak", "after", "descriptors before", "after"]
    columns += ["tracebacks", "errors logged", "MB of log", "idle again after, s"]
    return _table(
        columns,
        [
            [
                row.name,
                f"{row.before.megabytes:,.0f}",
                f"{row.peak:,.0f}",
                f"{row.after.megabytes:,.0f}",
                str(row.before.descriptors),
                str(row.after.descriptors),
                str(row.tracebacks),
                str(row.log_errors),
                f"{(row.after.log_bytes - row.before.log_bytes) / 1e6:.1f}",
                "never" if row.recovered is None else f"{row.recovered:.1f}",
            ]
            for row in rows
        ],
    )


def _wrong(rows: list[Row]) -> list[str]:
    lines = []
    for row in rows:
        found = [f"{text} ({n} times)" for text, n in row.tally.faults.most_common(_MOST_SHOWN)]
        found += row.tally.notes[:_MOST_SHOWN]
        found += [f"a normal client: {text}" for text in sorted(set(row.seen.failures))[:5]]
        lines += [f"- {row.name}: {text}" for text in found]
    return lines
