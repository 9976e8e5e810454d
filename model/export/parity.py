"""Compares graphs with their PyTorch model, also on held-out texts of a corpus."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch

from model.architecture.gcnn import GCNN
from model.core import graph
from model.core.config import ModelConfig
from model.core.flat_batch import whole_text
from model.core.graph import Floats, Indices
from model.data.corpus import Corpus
from model.evaluation.scoring import logprobs

TOLERANCE = 1e-4
"""Nats by which a log-probability of the float32 graph may differ from PyTorch's."""
HALF_TOLERANCE = 0.02
"""Nats by which the float16 graph's may differ from PyTorch's on average."""
INT8_TOLERANCE = 0.02
"""Nats by which the 8-bit graph's may differ from the rounded model's on average.

A sum that differs in its last bit can be rounded to the next byte, so single ones differ by more.
"""
INT8_PART = 0.9
"""Or, if it is more, this part of the effect of rounding: one such byte changes others."""
Scorer = Callable[[Indices], Floats]
"""int64 [N] to the log-probability of every token but the first, float32 [N - 1], in nats."""

_TEXTS, _TEXT_TOKENS = 100, 512
"""Number of texts for choosing scales, and for measuring; each is cut to this many tokens."""


class ParityError(Exception):
    """The graph does not compute the same as the model."""


class Graph:
    """A session of an ONNX file on the CPU, for complete texts."""

    def __init__(self, path: Path, config: ModelConfig, precision: graph.Precision) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.config, self.precision = config, precision
        pools = {graph.new_pool_name(name) for name in graph.pools(config, precision)}
        self.outputs = [o.name for o in self.session.get_outputs() if o.name not in pools]

    def scores(self, ids: Indices) -> Floats:
        """The first result of `run`."""
        return self.run(ids)[0]

    def run(self, ids: Indices) -> tuple[Floats, Floats]:
        """Log-probabilities of ids[1:], float32 [N - 1], and of every token after them, [V]."""
        multiple = graph.ROW_MULTIPLES[self.precision]
        batch = whole_text(ids, self.config.taps, multiple)
        feeds = {
            **batch.feeds(self.config, multiple),
            **graph.empty_pools(self.config, 1, self.precision),
        }
        logprobs, head, *tails = self.session.run(self.outputs, feeds)
        parts = [head[0, : self.config.head_columns - len(self.config.tails)]]
        if self.config.cutoffs:  # tails of all rows
            parts.append(tails[1][0])
        return logprobs[: len(ids) - 1], np.concatenate(parts)


def random_text(model: GCNN) -> Indices:
    """Random tokens, four receptive fields long, int64 [n]."""
    size = model.config.vocabulary
    ids = np.random.default_rng(0).integers(0, size, 4 * model.config.receptive_field)
    ids[0] = model.start_id
    ids[1:][ids[1:] == model.start_id] = (model.start_id + 1) % size
    return ids


def check(path: Path, model: GCNN, texts: list[Indices]) -> float:
    """The largest difference of the float32 graph from a stored model, in nats.

    Raises ParityError when it is above TOLERANCE.
    """
    runner = Graph(path, model.config, "float32")
    off = []
    for ids in texts:
        scores, next_scores = runner.run(ids)
        with torch.inference_mode():
            expected = model(torch.from_numpy(ids)[None])[0, -1].numpy()
        off += [np.abs(scores - logprobs(model, ids)).max(), np.abs(next_scores - expected).max()]
    worst = float(np.max(off))  # not a number, if one is
    if not worst <= TOLERANCE:
        raise ParityError(
            f"the graph differs from PyTorch by {worst:.2e} nats, more than {TOLERANCE:.0e}; "
            "no bundle was written"
        )
    return worst


def calibration_texts(corpus: Corpus, first: int) -> list[Indices]:
    """Beginnings of every other document, int64 [n] each, from the document `first` on.

    Scales are chosen on the documents from 0 on, graphs measured on those from 1 on. Raises
    ValueError if there is none.
    """
    bounds = corpus.documents
    begins = bounds[:-1][first::2][:_TEXTS]
    ends = bounds[1:][first::2][:_TEXTS]
    if not len(begins):
        raise ValueError(
            f"{corpus.folder}: calibration needs at least two documents, which `convlm prepare` "
            "makes of several files, or of one by --marker"
        )
    return [
        corpus.ids(begin, min(begin + _TEXT_TOKENS, end))
        for begin, end in zip(begins, ends, strict=True)
    ]


def perplexity_ratio(made: Scorer, exact: Scorer, unseen: list[Indices]) -> float:
    """The perplexity of texts by one scorer divided by that by another."""
    losses = [
        -np.concatenate([scores(ids) for ids in unseen]).mean(dtype=np.float64)
        for scores in (made, exact)
    ]
    return math.exp(losses[0] - losses[1])
