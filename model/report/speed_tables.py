"""Results of a measurement of speed, as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import onnxruntime

from model.report.machine import machine
from model.report.speed import GCNN_NAME, LSTM_NAME, Clock, Timings, best, ratios
from model.report.steps import steps_table

_CLOCKS: dict[Clock, str] = {
    "wall": "seconds by the clock",
    "cpu": "seconds of processor time of the process",
}


def report(timings: Timings) -> str:
    """All tables, and how they were measured."""
    plan = timings.plan
    sizes = ", ".join(f"{name} {count:,}" for name, count in timings.parameters.items())
    parts = [
        "# Speed",
        f"Model {timings.model}; parameters: {sizes}. ONNX Runtime {onnxruntime.__version__}, "
        f"{plan.device}, threads: {plan.threads or 'one for each core'}; {_CLOCKS[plan.clock]}; "
        f"{plan.rounds} rounds of all variants in turn. {machine()}.",
        "## Throughput and responsiveness",
        summary_table(timings),
        "## Time against length, one text",
        lengths_table(timings),
        "## Operations in sequence",
        steps_table(),
        "## All variants, tokens per second",
        variants_table(timings),
    ]
    return "\n\n".join(parts) + "\n"


def summary_table(timings: Timings) -> str:
    """Markdown: throughput and responsiveness of both in their best variants."""
    rows = [
        "| tokens per second | model | best variant | median | lowest to highest |",
        "| --- | --- | --- | --- | --- |",
    ]
    plan = timings.plan
    parts = (
        (f"{plan.texts} texts of {plan.text_tokens} tokens", timings.many),
        (f"one text of {plan.long_tokens:,} tokens", timings.one),
    )
    for title, rates in parts:
        for model in (GCNN_NAME, LSTM_NAME):
            name = best(model, rates)
            variant = name.removeprefix(f"{model}, ")
            rows.append(f"| {title} | {model} | {variant} | {_spread(rates[name], '{:,.0f}')} |")
        rows.append(f"| {title} | GCNN / LSTM | | {_spread(ratios(rates), '{:.2f}')} |")
    return "\n".join(rows)


def variants_table(timings: Timings) -> str:
    """Markdown: tokens per second of every variant."""
    rows = ["| variant | median | lowest to highest |", "| --- | --- | --- |"]
    for title, rates in (("many texts", timings.many), ("one text", timings.one)):
        rows += [f"| {title}: {name} | {_spread(v, '{:,.0f}')} |" for name, v in rates.items()]
    return "\n".join(rows)


def lengths_table(timings: Timings) -> str:
    """Markdown: time of one text, by its length."""
    rows = ["| tokens | GCNN, ms | LSTM, ms | LSTM / GCNN |", "| --- | --- | --- | --- |"]
    for length in timings.plan.lengths:
        one, other = (
            1000 * statistics.median(timings.lengths[model][length])
            for model in (GCNN_NAME, LSTM_NAME)
        )
        rows.append(f"| {length:,} | {one:,.1f} | {other:,.1f} | {other / one:.2f} |")
    return "\n".join(rows)


def _spread(values: Sequence[float], form: str) -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return f"{form.format(statistics.median(values))} | {low} to {high}"
