"""The 8-bit graphs of a bundle, beside the float32 graph whose stored weights they share."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from onnxscript import ir

from model.architecture.gcnn import GCNN
from model.core import bundle, byte_products
from model.core.graph import Indices
from model.data.corpus import Corpus
from model.evaluation.scoring import logprobs
from model.export import parity, quantize, weights
from model.export.divergence import refine
from model.export.flat_int8 import int8_graph, unsigned
from model.export.parity import INT8_PART, INT8_TOLERANCE, Graph, ParityError

WANTED_RATIO = bundle.MAX_INT8_PERPLEXITY_RATIO
"""Perplexity in 8 bits, relative to float32, above which all layers get scales by row."""
_WANTED_DIVERGENCE = 0.85 * math.log(WANTED_RATIO)
"""Nats per token that rounding may cost on the texts for choosing scales: less than on others."""


def write(
    folder: Path, model: GCNN, golden: list[bundle.Golden], corpus: Corpus
) -> tuple[list[bundle.Golden], float]:
    """Writes the 8-bit graphs of a model as stored into a folder that has its float32 graph.

    Scales are chosen on every other document of the corpus: by row in as many layers as
    WANTED_RATIO seems to need, and in all layers if that is not enough. Returns the golden texts
    with their scores in 8 bits, and the perplexity in 8 bits relative to float32 on the other
    documents. Raises ParityError, ValueError.
    """
    seen, unseen = (parity.calibration_texts(corpus, first) for first in (0, 1))
    scales = refine(model, quantize.calibrate(model, seen), seen, _WANTED_DIVERGENCE)
    eight, ratio = _written(folder, model, scales, unseen)
    others = {n: s for n, s in quantize.by_row(model, scales).items() if not scales[n].by_row}
    if ratio > WANTED_RATIO and others:
        before = ratio
        eight, ratio = _written(folder, model, scales | others, unseen)
        if ratio > max(before, WANTED_RATIO):
            eight, ratio = _written(folder, model, scales, unseen)
    scored = [
        entry.model_copy(update={"int8": eight.run(np.array(entry.ids))[0].tolist()})
        for entry in golden
    ]
    return scored, ratio


def _written(
    folder: Path, model: GCNN, scales: quantize.Scales, unseen: list[Indices]
) -> tuple[Graph, float]:
    """Writes both graphs; returns the one that is exact here, and its relative perplexity."""
    made = int8_graph(model, scales)
    weights.save(made, folder, bundle.GRAPH_INT8)
    ir.save(unsigned(made), folder / bundle.GRAPH_INT8_UNSIGNED)
    exact = Graph(folder / bundle.GRAPH, model.config, "float32")
    eight = Graph(folder / bundle.GRAPH_INT8_UNSIGNED, model.config, "int8")
    _check(eight, model, scales, unseen[:4])
    if not byte_products.saturate():
        signed = Graph(folder / bundle.GRAPH_INT8, model.config, "int8")
        _check(signed, model, scales, unseen[:4])
    return eight, parity.perplexity_ratio(eight.scores, exact.scores, unseen)


def _check(eight: Graph, model: GCNN, scales: quantize.Scales, texts: list[Indices]) -> None:
    exact = np.concatenate([logprobs(model, ids) for ids in texts])
    with quantize.rounding_products(model, scales):
        expected = np.concatenate([logprobs(model, ids) for ids in texts])
    computed = np.concatenate([eight.scores(ids) for ids in texts])
    difference = float(np.abs(computed - expected).mean())
    limit = max(INT8_TOLERANCE, float(np.abs(exact - expected).mean()) * INT8_PART)
    if not difference <= limit:
        raise ParityError(
            f"the 8-bit graph differs from the rounded model by {difference:.2e} nats on average, "
            f"more than {limit:.0e}; no bundle was written"
        )
