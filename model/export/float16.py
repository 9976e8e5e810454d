"""The float16 graph of a bundle, beside the float32 graph whose stored weights it shares."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from model.architecture.gcnn import GCNN
from model.core import bundle
from model.core.graph import Indices
from model.data.corpus import Corpus
from model.evaluation.scoring import logprobs
from model.export import held_out, shared_weights
from model.export.arithmetic import Float16
from model.export.flat import float_graph
from model.export.parity import HALF_TOLERANCE, Graph

MAX_RATIO = 1.002
"""Largest perplexity in float16, relative to float32, of a graph that is kept."""


def write(folder: Path, model: GCNN, texts: list[Indices]) -> float:
    """Writes the float16 graph of a stored model into a folder that has its float32 graph.

    Returns the mean difference of the log-probabilities, in nats, of the text where it is largest.
    If it is above HALF_TOLERANCE, or not a number, removes the graph. This is measured on a CPU,
    where ONNX Runtime computes most products in float32 and rounds the results.
    """
    shared_weights.save(float_graph(model, Float16), folder, bundle.GRAPH_FLOAT16)
    made = Graph(folder / bundle.GRAPH_FLOAT16, model.config, "float16")
    off = [np.abs(made.run(ids)[0] - logprobs(model, ids)).mean() for ids in texts]
    difference = float(np.max(off))
    if not difference <= HALF_TOLERANCE:
        (folder / bundle.GRAPH_FLOAT16).unlink()
    return difference


def keep_if_exact(folder: Path, model: GCNN, corpus: Corpus) -> float:
    """Returns the perplexity in float16 relative to float32, on held-out documents.

    Removes the graph if it is above MAX_RATIO, or not a number. Raises ValueError.
    """
    half = Graph(folder / bundle.GRAPH_FLOAT16, model.config, "float16")
    exact = Graph(folder / bundle.GRAPH, model.config, "float32")
    texts = held_out.calibration_texts(corpus, 1)
    ratio = held_out.perplexity_ratio(half.scores, exact.scores, texts)
    if not ratio <= MAX_RATIO:
        (folder / bundle.GRAPH_FLOAT16).unlink()
    return ratio
