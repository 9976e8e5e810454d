"""The results of `overload`: shares, times, tables and a picture."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import matplotlib
import numpy as np

from tests.bench.open_loop import Arrival

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ANSWERS = ("200", "503", "504")
_ENDS = (*ANSWERS, "gave up", "hung", "disconnected")
_IN_A_ROW = 5
"""Requests whose median shows that a server is normal again: one may be slow by chance."""
_LEAST_RETRY_SECONDS = 1.0
"""Retry-After is in whole seconds, at least 1."""


@dataclass(frozen=True, slots=True)
class Retry:
    """A refused request and when it was accepted.

    name: what it was. status: what it got as the load ended. named: seconds of Retry-After; None
    if it was not refused. waited: seconds until it was accepted, sent alone; None if never.
    """

    name: str
    status: str
    named: float | None
    waited: float | None

    @property
    def ratio(self) -> float | None:
        """Named by waited; a second named for less than a second is right."""
        if self.named is None or self.waited is None:
            return None
        return self.named / max(_LEAST_RETRY_SECONDS, self.waited)


class Outcomes(TypedDict):
    """What has become of the clients of a load; see `Level`."""

    offered: float
    goodput: float
    shares: dict[str, float]
    statuses: dict[str, int]
    accepted: tuple[float, float] | None
    refused: tuple[float, float] | None
    named: tuple[float, float] | None
    late_seconds: float
    last_seconds: float


@dataclass(frozen=True, slots=True)
class Level:
    """One load and what came of it. Rates are requests a second.

    share: the load by the capacity. goodput: answered with 200 to clients who still waited, until
    the load ended. shares: of each outcome. statuses: numbers of all outcomes. accepted, refused:
    seconds at p50 and p99 of answers 200 and 503. named: median and largest Retry-After.
    late_seconds: how late requests were sent, p99; more than a few milliseconds mean that the
    generator has not kept up. last_seconds: from the end of the load to the last 200.
    idle_seconds: the median request to the idle server; normal_seconds: from the end of the load
    until requests take at most twice that time. generator_cores, server_cores, machine_cores:
    seconds of processor a second, the last of all processes.
    """

    share: float
    capacity: float
    offered: float
    goodput: float
    shares: dict[str, float]
    statuses: dict[str, int]
    accepted: tuple[float, float] | None
    refused: tuple[float, float] | None
    named: tuple[float, float] | None
    late_seconds: float
    last_seconds: float
    idle_seconds: float
    normal_seconds: float | None
    generator_cores: float
    server_cores: float | None
    machine_cores: float
    retries: list[Retry]


def outcomes(arrivals: list[Arrival], seconds: float) -> Outcomes:
    """What has become of the clients of a load of so many seconds."""
    counts = Counter(arrival.outcome for arrival in arrivals)
    shares = {name: counts[name] / len(arrivals) for name in _ENDS}
    others = sum(number for name, number in counts.items() if name not in _ENDS)
    served = [arrival for arrival in arrivals if arrival.outcome == "200"]
    refused = [arrival for arrival in arrivals if arrival.outcome == "503"]
    named = [a.retry_after for a in refused if a.retry_after is not None]
    return {
        "offered": len(arrivals) / seconds,
        "goodput": sum(arrival.ended <= seconds for arrival in served) / seconds,
        "shares": {**shares, "other": others / len(arrivals)},
        "statuses": dict(counts),
        "accepted": _quantiles([arrival.seconds for arrival in served]),
        "refused": _quantiles([arrival.seconds for arrival in refused]),
        "named": (statistics.median(named), max(named)) if named else None,
        "late_seconds": float(np.quantile([a.sent - a.moment for a in arrivals], 0.99)),
        "last_seconds": max([0.0, *(arrival.ended - seconds for arrival in served)]),
    }


def _quantiles(values: list[float]) -> tuple[float, float] | None:
    """p50 and p99."""
    if not values:
        return None
    p50, p99 = np.quantile(values, [0.5, 0.99])
    return float(p50), float(p99)


def normal_from(took: Sequence[float | None], most: float) -> int | None:
    """The first of _IN_A_ROW requests, all answered, whose median time is at most `most`.

    took: seconds of each request; None while it waits, infinite if it was not answered with 200.
    """
    for first in range(len(took) - _IN_A_ROW + 1):
        row = [seconds for seconds in took[first : first + _IN_A_ROW] if seconds is not None]
        if len(row) == _IN_A_ROW and max(row) < np.inf and statistics.median(row) <= most:
            return first
    return None


def markdown(levels: list[Level]) -> str:
    """Tables of outcomes, of times and of the generator."""
    ends = (*_ENDS, "other")
    rows = [
        f"| load / capacity | capacity/s | offered/s | goodput / capacity | {' | '.join(ends)} |"
    ]
    rows.append("| --: |" + " --: |" * (3 + len(ends)))
    for level in levels:
        shares = " | ".join(f"{level.shares[end]:.1%}" for end in ends)
        rates = f"{level.capacity:,.0f} | {level.offered:,.0f}"
        ratio = level.goodput / level.capacity
        rows.append(f"| {level.share:g} | {rates} | {ratio:.2f} | {shares} |")
    rows += ["", f"| load / capacity | {' | '.join(_TIMES)} |", "| --: |" + " --: |" * len(_TIMES)]
    rows += [f"| {level.share:g} | {' | '.join(_times(level))} |" for level in levels]
    return "\n".join(rows) + "\n"


_TIMES = (
    *("200: p50, s", "200: p99, s", "503: p50, ms", "503: p99, ms", "Retry-After: median, largest"),
    *("normal after, s", "last 200 after, s", "idle request, ms", "sent late, p99, ms"),
    *("cores: generator, server, machine", "refused at the end: named, accepted after, s (ratio)"),
)


def _times(level: Level) -> list[str]:
    normal = level.normal_seconds
    cores = "-" if level.server_cores is None else f"{level.server_cores:.2f}"
    return [
        *([f"{seconds:.2f}" for seconds in level.accepted] if level.accepted else "--"),
        *([f"{1e3 * seconds:.0f}" for seconds in level.refused] if level.refused else "--"),
        ", ".join(f"{seconds:.0f}" for seconds in level.named or ()) or "-",
        "never" if normal is None else f"{normal:.1f}",
        f"{level.last_seconds:.1f}",
        f"{1e3 * level.idle_seconds:.1f}",
        f"{1e3 * level.late_seconds:.0f}",
        f"{level.generator_cores:.2f}, {cores}, {level.machine_cores:.2f}",
        "; ".join(map(_retry, level.retries)) or "-",
    ]


def _retry(retry: Retry) -> str:
    if retry.named is None:
        return f"{retry.name}: {retry.status}"
    if retry.ratio is None:
        return f"{retry.name}: {retry.named:.0f}, never"
    return f"{retry.name}: {retry.named:.0f}, {retry.waited:.1f} ({retry.ratio:.2f})"


def draw(levels: list[Level], before: list[Level], path: Path) -> None:
    """Goodput and the times of accepted requests over the offered load."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for name, points in (("", levels), ("before: ", before)):
        shares = [level.share for level in points]
        if not points:
            continue
        style = "o-" if points is levels else "x--"
        (line,) = left.plot(
            shares, [p.goodput / p.capacity for p in points], style, label=name + "200"
        )
        color = line.get_color()
        for number, quantile in enumerate(("p50", "p99")):
            times = [p.accepted[number] if p.accepted else np.nan for p in points]
            right.plot(
                shares, times, style, color=color, alpha=(0.5, 1)[number], label=name + quantile
            )
    left.axhline(1, color="gray", linewidth=0.8)
    left.set_ylabel("goodput / capacity")
    left.set_ylim(bottom=0)
    right.set_ylabel("seconds of accepted requests")
    right.set_yscale("log")
    for axes in (left, right):
        axes.set_xlabel("offered load / capacity")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
