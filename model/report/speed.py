"""The speed of convolutions and of an LSTM of the same size (Dauphin 2017, sections 4.3 and 5.1).

Both run on the same ONNX Runtime with the same threads, embedding and softmax. Each round measures
all variants, so that other load of the machine affects all equally; figures are medians.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import onnxruntime

from model.architecture.gcnn import GCNN
from model.architecture.lstm import LSTM
from model.core.config import LSTMConfig, ModelConfig
from model.core.graph import Indices
from model.core.processor import machine
from model.report.scorers import Device, GCNNScorer, LSTMScorer, Scorer
from model.report.sizes import lstm_like

Key = TypeVar("Key")
Clock = Literal["wall", "cpu"]
CLOCKS: dict[Clock, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
_UNITS: dict[Clock, str] = {
    "wall": "seconds by the clock",
    "cpu": "seconds of processor time of the process",
}

RESULTS = "speed.json"
CONTEXTS = (5, 10, 20, 40, 80, 160, 1000)
KERNELS = (2, 3, 4, 5, 6)
LENGTHS = (16, 64, 256, 1024, 4096, 16_384)
GCNN_NAME, LSTM_NAME = "GCNN", "LSTM"
_START = 0
"""The start symbol."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. Lengths and rows are in tokens.

    Throughput: `texts` texts of `text_tokens`. Responsiveness: one text of `long_tokens`. Length:
    one text of each of `lengths`. `rows` are the tokens of a run, `side_by_side` the texts that the
    LSTM processes together; the best of them counts.

    Clock `cpu` is the processor time of all threads of the process: with one thread on a CPU it is
    close to the time on an idle machine.
    """

    texts: int = 256
    text_tokens: int = 32
    long_tokens: int = 15_000
    lengths: tuple[int, ...] = LENGTHS
    rows: tuple[int, ...] = (128, 256, 512, 1024)
    side_by_side: tuple[int, ...] = (8, 32, 128)
    rounds: int = 5
    threads: int = 1
    device: Device = "cpu"
    clock: Clock = "wall"


@dataclass(frozen=True, slots=True)
class Timings:
    """Results, with one value for each round.

    `many`: tokens per second by variant. `one`: the same for the long text. `lengths`: seconds
    for a text, by model and length. Variants begin with the model's name.
    """

    model: str
    parameters: dict[str, int]
    plan: Plan
    many: dict[str, list[float]]
    one: dict[str, list[float]]
    lengths: dict[str, dict[int, list[float]]]


def measure(config: ModelConfig, name: str, plan: Plan, layers: int = 1) -> Timings:
    """Measures a model with random weights beside an LSTM of `layers` layers.

    Both are without tables of n-grams, whose parameters cost almost no time. Raises ValueError for
    a plan that cannot be measured.
    """
    if plan.clock == "cpu" and (plan.device != "cpu" or plan.threads != 1):
        raise ValueError("the clock `cpu` is for one thread on a CPU")
    config = config.model_copy(update={"ngrams": ()})
    other: LSTMConfig = lstm_like(config, layers)
    gcnn = GCNNScorer(GCNN(config, _START), plan.threads, plan.device)
    lstm = LSTMScorer(LSTM(other, _START), plan.threads, plan.device)
    models: dict[str, Scorer] = {GCNN_NAME: gcnn, LSTM_NAME: lstm}
    rng = np.random.default_rng(0)

    many = interleave(_many(gcnn, lstm, config.vocabulary, rng, plan), plan.rounds, plan.clock)
    counted = plan.texts * plan.text_tokens
    many_rates = {title: [counted / s for s in values] for title, values in many.items()}

    long = _text(rng, config.vocabulary, plan.long_tokens)
    rows = {GCNN_NAME: plan.rows, LSTM_NAME: (plan.rows[0], plan.rows[-1])}
    variants = {f"{m}, {n} tokens a run": (models[m], n) for m in models for n in rows[m]}
    one = interleave(
        {title: partial(scorer.one, *long, n) for title, (scorer, n) in variants.items()},
        plan.rounds,
        plan.clock,
    )
    one_rates = {title: [plan.long_tokens / s for s in values] for title, values in one.items()}

    fastest = {model: variants[best(model, one_rates)] for model in models}
    texts = {length: _text(rng, config.vocabulary, length) for length in plan.lengths}
    lengths = interleave(
        {
            (model, length): partial(scorer.one, *texts[length], n)
            for length in plan.lengths
            for model, (scorer, n) in fastest.items()
        },
        plan.rounds,
        plan.clock,
    )
    return Timings(
        name,
        {GCNN_NAME: config.parameters(), LSTM_NAME: other.parameters()},
        plan,
        many_rates,
        one_rates,
        {model: {n: lengths[model, n] for n in plan.lengths} for model in models},
    )


def _many(
    gcnn: Scorer, lstm: Scorer, vocabulary: int, rng: np.random.Generator, plan: Plan
) -> dict[str, Callable[[], object]]:
    """The variants of scoring many texts."""
    texts = [_text(rng, vocabulary, plan.text_tokens) for _ in range(plan.texts)]
    tokens, targets = np.stack([t[0] for t in texts]), np.stack([t[1] for t in texts])
    calls: dict[str, Callable[[], object]] = {}
    for rows in plan.rows:
        count = min(plan.texts, max(1, rows // plan.text_tokens))
        title = f"{GCNN_NAME}, {count} whole texts a run"
        calls[title] = partial(gcnn.many, tokens, targets, count, rows)
        for wanted in plan.side_by_side:
            beside = min(plan.texts, wanted)
            steps = min(plan.text_tokens, max(1, rows // beside))
            title = f"{LSTM_NAME}, {beside} texts side by side, {steps} steps a run"
            calls[title] = partial(lstm.many, tokens, targets, beside, steps * beside)
    return calls


def interleave(
    work: Mapping[Key, Callable[[], object]], rounds: int, clock: Clock
) -> dict[Key, list[float]]:
    """Seconds of every call in every round, by name, after a round to warm up."""
    now = CLOCKS[clock]
    seconds: dict[Key, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, call in work.items():
            began = now()
            call()
            if number > 0:
                seconds[name].append(now() - began)
    return seconds


def best(model: str, rates: Mapping[str, Sequence[float]]) -> str:
    """The model's variant with the highest median."""
    variants = [name for name in rates if name.startswith(model)]
    return max(variants, key=lambda name: statistics.median(rates[name]))


def ratios(rates: Mapping[str, Sequence[float]]) -> list[float]:
    """The ratio of the best rates of GCNN and LSTM in every round."""
    pair = (rates[best(GCNN_NAME, rates)], rates[best(LSTM_NAME, rates)])
    return [one / other for one, other in zip(*pair, strict=True)]


def save(timings: Timings, folder: Path) -> None:
    """Writes all values of all rounds."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS).write_text(json.dumps(asdict(timings), indent=2) + "\n")


def _text(rng: np.random.Generator, vocabulary: int, length: int) -> tuple[Indices, Indices]:
    """Inputs and targets, int64 [N] each, drawn with the frequencies of words (Zipf's law).

    Larger ids are rarer, so that an adaptive softmax has its usual share of rare words.
    """
    odds = 1 / (np.arange(1, vocabulary) + 10.0)
    drawn = rng.choice(vocabulary - 1, length, p=odds / odds.sum()) + 1
    return np.concatenate([[_START], drawn[:-1]]), drawn


def report(timings: Timings) -> str:
    """All tables, and how they were measured."""
    plan = timings.plan
    sizes = ", ".join(f"{name} {count:,}" for name, count in timings.parameters.items())
    parts = [
        "# Speed",
        f"Model {timings.model}; parameters: {sizes}. ONNX Runtime {onnxruntime.__version__}, "
        f"{plan.device}, threads: {plan.threads or 'one for each core'}; {_UNITS[plan.clock]}; "
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


def sequential_steps(context: int, kernel: int) -> int:
    """Layers of a kernel width that see `context` tokens: ceil((N - 1) / (k - 1)), O(N / k).

    The operations of a layer are parallel. An LSTM takes N steps, one for each token.
    """
    if kernel < 2:
        raise ValueError(f"a kernel of width {kernel} sees no earlier token")
    return -(-(context - 1) // (kernel - 1))


def steps_table(contexts: Sequence[int] = CONTEXTS, kernels: Sequence[int] = KERNELS) -> str:
    """Markdown: convolution layers in sequence beside an LSTM's steps."""
    heads = " | ".join(f"layers, k = {kernel}" for kernel in kernels)
    rows = [f"| context, tokens | LSTM steps | {heads} |", "| --- " * (2 + len(kernels)) + "|"]
    for context in contexts:
        cells = " | ".join(str(sequential_steps(context, kernel)) for kernel in kernels)
        rows.append(f"| {context} | {context} | {cells} |")
    return "\n".join(rows)
