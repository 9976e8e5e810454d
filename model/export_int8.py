"""The 8-bit graph of a bundle, beside the float32 graph whose stored weights it shares."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from onnxscript import ir

from model import bundle, quantize
from model.data import Corpus
from model.evaluate import logprobs
from model.flat_int8 import EightBitGraph
from model.gcnn import GCNN
from model.graph import Indices
from model.parity import INT8_TOLERANCE, Graph, ParityError

WANTED_RATIO = bundle.MAX_INT8_PERPLEXITY_RATIO
"""Perplexity in 8 bits over that in float32 up to which the quicker, fixed scales will do."""
_TEXT_TOKENS = 512
_TEXTS = 100
"""Texts of so many tokens at most that scales are chosen by, and as many that are measured."""


def write(
    folder: Path, model: GCNN, golden: list[bundle.Golden], corpus: Corpus
) -> tuple[list[bundle.Golden], float]:
    """Writes the 8-bit graph of a model as stored into a folder that has its float32 graph.

    Scales are chosen by every other document of the corpus, by row too where fixed ones would cost
    more than WANTED_RATIO. Returns the golden texts with their
    scores in 8 bits, and the perplexity in 8 bits over that in float32 on the documents between.
    Raises ParityError, ValueError.
    """
    seen, unseen = _texts(corpus, 0), _texts(corpus, 1)
    fixed = quantize.calibrate(model, seen)
    eight, ratio = _written(folder, model, fixed, unseen)
    by_row = quantize.by_row(model, fixed)
    if ratio > WANTED_RATIO and by_row != fixed:
        before = ratio
        eight, ratio = _written(folder, model, by_row, unseen)
        if ratio > max(before, WANTED_RATIO):
            eight, ratio = _written(folder, model, fixed, unseen)
    scored = [
        entry.model_copy(update={"int8": eight.run(np.array(entry.ids))[0].tolist()})
        for entry in golden
    ]
    return scored, ratio


def _written(
    folder: Path, model: GCNN, scales: quantize.Scales, unseen: list[Indices]
) -> tuple[Graph, float]:
    """The graph of some scales, and what it does to the perplexity."""
    made = EightBitGraph(model, scales).build()
    _share_weights(made, ir.load(folder / bundle.GRAPH))
    ir.save(made, folder / bundle.GRAPH_INT8)
    exact = Graph(folder / bundle.GRAPH, model.config, "float32")
    eight = Graph(folder / bundle.GRAPH_INT8, model.config, "int8")
    _check(eight, model, scales, unseen[:4])
    losses = [
        -np.concatenate([runner.run(ids)[0] for ids in unseen]).mean(dtype=np.float64)
        for runner in (eight, exact)
    ]
    return eight, math.exp(losses[0] - losses[1])


def _texts(corpus: Corpus, first: int) -> list[Indices]:
    """Beginnings of every other document, int64 [n] each."""
    bounds = corpus.documents
    begins = bounds[:-1][first::2][:_TEXTS]
    ends = bounds[1:][first::2][:_TEXTS]
    if not len(begins):
        raise ValueError(f"{corpus.folder}: calibration needs at least two documents")
    return [
        np.asarray(corpus.tokens[begin : min(begin + _TEXT_TOKENS, end)], np.int64)
        for begin, end in zip(begins, ends, strict=True)
    ]


def _share_weights(made: ir.Model, stored: ir.Model) -> None:
    """Makes weights that another saved model keeps in a file of its own those of that file."""
    for name, value in made.graph.initializers.items():
        other = stored.graph.initializers.get(name)
        if other is not None and isinstance(other.const_value, ir.ExternalTensor):
            value.const_value = other.const_value


def _check(eight: Graph, model: GCNN, scales: quantize.Scales, texts: list[Indices]) -> None:
    with quantize.rounded(model, scales):
        expected = np.concatenate([logprobs(model, ids) for ids in texts])
    found = np.concatenate([eight.run(ids)[0] for ids in texts])
    difference = float(np.abs(found - expected).mean())
    if not difference <= INT8_TOLERANCE:
        raise ParityError(
            f"the 8-bit graph differs from the rounded model by {difference:.2e} nats on average, "
            f"more than {INT8_TOLERANCE:.0e}; no bundle was written"
        )
