"""Results of a comparison of gates, as Markdown."""

from __future__ import annotations

import math
import statistics

from model.core.gates import GATES
from model.report.gates import Comparison, perplexity
from model.report.machine import machine


def report(comparison: Comparison) -> str:
    """All tables, and how they were measured."""
    settings = comparison.recipe.train
    tokens = settings.steps * settings.batch_rows * settings.row_tokens
    parts = [
        "# Gates",
        f"{settings.steps:,} updates of {settings.batch_rows} rows of {settings.row_tokens} tokens "
        f"({tokens:,} tokens) for every gate; validation on {settings.validate_tokens:,} "
        "tokens. Each gate has the learning rate that was best for it on the first seed. CPU "
        "seconds are those of the process during updates; programs that share the caches "
        f"still lengthen them. {machine()}.",
        "## Models",
        sizes_table(comparison),
        "## Perplexity after the last update",
        results_table(comparison),
        "## Learning rates, first seed",
        rates_table(comparison),
    ]
    return "\n\n".join(parts) + "\n"


def sizes_table(comparison: Comparison) -> str:
    """Markdown: the models that are compared."""
    rows = [
        "| gate | channels | columns of a convolution | parameters |",
        "| --- | --- | --- | --- |",
    ]
    for gate, model in comparison.models.items():
        channels = model.blocks[0].layers[0][1]
        columns = channels * GATES[gate].halves
        rows.append(f"| {gate} | {channels} | {columns} | {model.parameters():,} |")
    return "\n".join(rows)


def results_table(comparison: Comparison) -> str:
    """Markdown: validation perplexities after the same updates, lowest first."""
    finished = {gate: comparison.finished(gate) for gate in comparison.gates}
    means = {
        gate: statistics.fmean([run.perplexity for run in runs])
        for gate, runs in finished.items()
        if runs
    }
    rows = [
        "| gate | learning rate | seeds | perplexity: mean | standard deviation "
        "| lowest to highest | CPU seconds of training |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for gate in sorted(means, key=lambda g: means[g]):
        values = [run.perplexity for run in finished[gate]]
        spread = len(values) > 1 and math.isfinite(means[gate])
        deviation = f"{statistics.stdev(values):.1f}" if spread else ""
        seconds = statistics.fmean([run.cpu_seconds for run in finished[gate]])
        rows.append(
            f"| {gate} | {comparison.best_rate(gate):g} | {len(values)} | {means[gate]:.1f} "
            f"| {deviation} | {min(values):.1f} to {max(values):.1f} "
            f"| {seconds:.1f} |"
        )
    return "\n".join(rows)


def rates_table(comparison: Comparison) -> str:
    """Markdown: the first seed's perplexity with each learning rate."""
    heads = " | ".join(f"{rate:g}" for rate in comparison.rates)
    rows = [f"| gate | {heads} |", "| --- |" + " --- |" * len(comparison.rates)]
    for gate in comparison.gates:
        losses = comparison.losses_of_rates(gate)
        cells = [f"{perplexity(losses[r]):.1f}" if r in losses else "" for r in comparison.rates]
        rows.append(f"| {gate} | {' | '.join(cells)} |")
    return "\n".join(rows)
