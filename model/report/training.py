"""The speed of training, as a share of the machine's best rate of matrix products.

For a token, each weight of a matrix product costs 6 operations: 2 forward and 4 backward (for the
gradients of inputs and weights). Tables, gates, the optimiser and everything else are not counted,
so their time lowers the share.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from model.core.config import LanguageModelConfig
from model.data.corpus import Corpus
from model.report.speed import CLOCKS, Clock
from model.training.recipe import RunConfig
from model.training.trainer import Trainer

_SIDE = 1024
_FIRST_UPDATES = 3
"""Not measured: the first updates ask the system for more memory than later ones."""
_FUNCTIONS = {"_SideBySide": "copies and joins of frames", "_Clamp": "bounds", "_Total": "softmax"}
"""Autograd functions of the model, and what their operators are for, except matrix products."""
_KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear", "mkldnn"),
    "copies and joins of frames": ("aten::cat", "aten::copy_", "aten::fill_", "aten::zero_"),
    "gates": ("aten::glu", "aten::sigmoid", "aten::tanh", "aten::mul"),
    "bounds": ("aten::aminmax", "aten::clamp"),
    "tables": ("aten::embedding", "aten::index", "aten::_index_put", "aten::index_add"),
    "sums of gradients and residuals": ("aten::add", "aten::sum"),
    "optimiser": ("aten::_fused_adam", "aten::_foreach", "Optimizer"),
}


@dataclass(frozen=True, slots=True)
class Speed:
    """Rates of training and of matrix products in every round.

    tokens: tokens a second. operations: for one token. profile: share of the time by kind of
    operator, in one update. dtype: what products are computed in, on both sides.
    """

    tokens: list[float]
    products: list[float]
    operations: float
    profile: dict[str, float]
    threads: int
    dtype: torch.dtype

    @property
    def share(self) -> float:
        """The rate of training divided by that of matrix products; the median over rounds."""
        rounds = zip(self.tokens, self.products, strict=True)
        return statistics.median(t * self.operations / p for t, p in rounds)


def measure(
    config: RunConfig, corpus: Corpus, updates: int = 4, rounds: int = 5, clock: Clock = "wall"
) -> Speed:
    """Measures rounds of `updates` updates and of matrix products of the same dtype and threads.

    Clock `cpu` is the processor time of the process, for one thread on a machine with other load.
    """
    now = CLOCKS[clock]
    if torch.cuda.is_available():
        raise ValueError("the rate of matrix products is measured on the CPU; hide the GPU")
    if clock == "cpu" and torch.get_num_threads() != 1:
        raise ValueError("the clock `cpu` is for one thread; set OMP_NUM_THREADS=1")
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, corpus, corpus, Path(folder))
        for _ in range(_FIRST_UPDATES):
            trainer.advance()
        tokens, products = [], []
        size = updates * config.train.batch_rows * config.train.row_tokens
        for _ in range(rounds):
            products.append(product_rate(now, trainer.dtype))
            begin = now()
            for _ in range(updates):
                trainer.advance()
            tokens.append(size / (now() - begin))
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            trainer.advance()
    rate = operations(config.model, corpus)
    threads = torch.get_num_threads()
    return Speed(tokens, products, rate, by_kind(profiled), threads, trainer.dtype)


def product_rate(now: Callable[[], float], dtype: torch.dtype, seconds: float = 1.0) -> float:
    """The best rate of [1024, 1024] matrix products by a clock, in operations a second."""
    a, b = torch.randn(2, _SIDE, _SIDE).to(dtype)
    best, end = float("inf"), now() + seconds
    while (begin := now()) < end:
        a @ b
        best = min(best, now() - begin)
    return 2 * _SIDE**3 / best


def operations(config: LanguageModelConfig, corpus: Corpus, tokens: int = 1_000_000) -> float:
    """Operations of matrix products for a token of the corpus, forward and backward.

    A tail of an adaptive softmax counts for the share of tokens that are in it.
    """
    ids = torch.from_numpy(corpus.ids(0, tokens))
    weights = config.trunk_macs() + config.head_width * config.head_columns
    total = float(weights)
    for tail in config.tails:
        share = float(((ids >= tail.low) & (ids < tail.high)).float().mean())
        total += share * tail.inner * (config.head_width + tail.size)
    return 6 * total


def by_kind(profiled: profile) -> dict[str, float]:
    """Shares of the time by kind of operator, largest first."""
    shares = dict.fromkeys([*_KINDS, *_FUNCTIONS.values(), "everything else"], 0.0)
    for event in profiled.events() or ():
        shares[_kind(event)] += event.self_cpu_time_total
    total = sum(shares.values())
    return dict(sorted(((k, s / total) for k, s in shares.items()), key=lambda pair: -pair[1]))


def _kind(event: FunctionEvent) -> str:
    kind_by_name = next((k for k, starts in _KINDS.items() if event.name.startswith(starts)), None)
    if kind_by_name == "matrix products":
        return kind_by_name
    around: FunctionEvent | None = event
    while around is not None:
        for name, kind in _FUNCTIONS.items():
            if around.name.startswith(name):
                return kind
        around = around.cpu_parent
    return kind_by_name or "everything else"


def table(speed: Speed) -> str:
    """The results as Markdown."""
    lines = [
        "| training | figure |",
        "| --- | --- |",
        f"| threads | {speed.threads} |",
        f"| products in | {str(speed.dtype).removeprefix('torch.')} |",
        f"| tokens a second | {statistics.median(speed.tokens):,.0f} |",
        f"| operations a token | {speed.operations / 1e6:.1f} M |",
        f"| rate | {statistics.median(speed.tokens) * speed.operations / 1e9:.0f} GFLOP/s |",
        f"| matrix products alone | {statistics.median(speed.products) / 1e9:.0f} GFLOP/s |",
        f"| share, median of {len(speed.tokens)} rounds | {speed.share:.2f} |",
        "",
        "| where the time of an update goes | share |",
        "| --- | --- |",
    ]
    lines += [f"| {kind} | {100 * share:.1f} % |" for kind, share in speed.profile.items()]
    return "\n".join(lines)
