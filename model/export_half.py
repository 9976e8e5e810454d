"""The float16 graph of a bundle, beside the float32 graph whose stored weights it shares."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from model import bundle, held_out, shared_weights
from model.data import Corpus
from model.evaluate import logprobs
from model.flat_half import HalfGraph
from model.gcnn import GCNN
from model.graph import Indices
from model.parity import HALF_TOLERANCE, Graph


def write(folder: Path, model: GCNN, texts: list[Indices]) -> float:
    """Writes the float16 graph of a stored model into a folder that has its float32 graph.

    Returns by how much the log-probabilities of texts are off on average, in nats; not a number
    where float16 cannot hold them. There is no graph then, nor if it is more than HALF_TOLERANCE.
    """
    shared_weights.save(HalfGraph(model).build(), folder, bundle.GRAPH_FLOAT16)
    made = Graph(folder / bundle.GRAPH_FLOAT16, model.config, "float16")
    off = [np.abs(made.run(ids)[0] - logprobs(model, ids)) for ids in texts]
    difference = float(np.concatenate(off).mean())
    if not difference <= HALF_TOLERANCE:
        (folder / bundle.GRAPH_FLOAT16).unlink()
    return difference


def perplexity_ratio(folder: Path, model: GCNN, corpus: Corpus) -> float:
    """The perplexity in float16 over that in float32, on the documents that 8 bits are measured on.

    Raises ValueError.
    """
    graphs = (
        Graph(folder / bundle.GRAPH_FLOAT16, model.config, "float16"),
        Graph(folder / bundle.GRAPH, model.config, "float32"),
    )
    return held_out.perplexity_ratio(*graphs, held_out.texts(corpus, 1))
