"""Figures as PNG files. Matplotlib is optional: only this file imports it, to draw a figure."""

from __future__ import annotations

import importlib
import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from model.report.gates import Run, perplexity

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#000000")
"""Distinguishable also for colour-blind readers (Okabe & Ito 2008)."""


def gates(runs: Mapping[str, Sequence[Run]], path: Path) -> None:
    """Perplexity against updates and processor time, with a band from lowest to highest seed.

    Raises ModuleNotFoundError without Matplotlib.
    """
    figure, panels = _panels(2)
    for (gate, its_runs), colour in zip(runs.items(), cycle(_COLOURS), strict=False):
        finite = [run for run in its_runs if math.isfinite(run.perplexity)]
        if not finite:
            continue
        columns = list(zip(*(run.points for run in finite), strict=True))  # [validations, seeds]
        values = [[perplexity(point.loss) for point in column] for column in columns]
        middle = [statistics.fmean(column) for column in values]
        seconds = [statistics.fmean(p.cpu_seconds for p in column) for column in columns]
        steps = [column[0].step for column in columns]
        for panel, x in zip(panels, (steps, seconds), strict=True):
            panel.plot(x, middle, label=gate, color=colour, linewidth=1.2)
            low, high = [min(v) for v in values], [max(v) for v in values]
            panel.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    for panel, label in zip(panels, ("updates", "CPU seconds of training"), strict=True):
        panel.set(xlabel=label, yscale="log")
        panel.yaxis.set_major_formatter("{x:.0f}")
        panel.yaxis.set_minor_formatter("{x:.0f}")
        panel.grid(visible=True, which="both", alpha=0.25)
    panels[0].set_ylabel("validation perplexity")
    panels[0].legend()
    _write(figure, path)


def lengths(seconds: Mapping[str, Mapping[int, Sequence[float]]], path: Path) -> None:
    """Seconds of one text against its length, both logarithmic.

    Raises ModuleNotFoundError without Matplotlib.
    """
    figure, (panel,) = _panels(1)
    for (model, measured), colour in zip(seconds.items(), cycle(_COLOURS), strict=False):
        middle = [statistics.median(values) for values in measured.values()]
        panel.plot(list(measured), middle, marker="o", label=model, color=colour)
    panel.set_xscale("log", base=2)
    panel.set(xlabel="tokens of the text", ylabel="seconds", yscale="log")
    panel.grid(visible=True, which="both", alpha=0.25)
    panel.legend()
    _write(figure, path)


def _panels(count: int) -> tuple[Any, list[Any]]:
    """A figure without a window, and its panels side by side."""
    try:
        module = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        message = "figures need Matplotlib; install the package's extra `report`"
        raise ModuleNotFoundError(message) from error
    figure = module.Figure(figsize=(4.8 * count, 3.8), layout="constrained")
    return figure, list(figure.subplots(1, count, sharey=True, squeeze=False)[0])


def _write(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
