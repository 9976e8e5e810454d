"""What the further graphs of a bundle are written and measured with."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from onnxscript import ir

from model import bundle
from model.data import Corpus
from model.graph import Indices
from model.parity import Graph

_TEXT_TOKENS = 512
_TEXTS = 100
"""Texts of so many tokens at most that scales are chosen by, and as many that are measured."""


def save_beside(made: ir.Model, folder: Path, name: str) -> None:
    """Saves a graph into a bundle's folder; weights that its float32 graph has are stored once."""
    stored = ir.load(folder / bundle.GRAPH)
    for weight, value in made.graph.initializers.items():
        other = stored.graph.initializers.get(weight)
        if other is not None and isinstance(other.const_value, ir.ExternalTensor):
            value.const_value = other.const_value
    ir.save(made, folder / name)


def texts(corpus: Corpus, first: int) -> list[Indices]:
    """Beginnings of every other document, int64 [n] each; first: 0 or 1. Raises ValueError."""
    bounds = corpus.documents
    begins = bounds[:-1][first::2][:_TEXTS]
    ends = bounds[1:][first::2][:_TEXTS]
    if not len(begins):
        raise ValueError(f"{corpus.folder}: calibration needs at least two documents")
    return [
        np.asarray(corpus.tokens[begin : min(begin + _TEXT_TOKENS, end)], np.int64)
        for begin, end in zip(begins, ends, strict=True)
    ]


def perplexity_ratio(made: Graph, exact: Graph, unseen: list[Indices]) -> float:
    """The perplexity of texts in one graph over that in another."""
    losses = [
        -np.concatenate([runner.run(ids)[0] for ids in unseen]).mean(dtype=np.float64)
        for runner in (made, exact)
    ]
    return math.exp(losses[0] - losses[1])
