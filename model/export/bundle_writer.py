"""Checkpoint to bundle. Parity with PyTorch is checked before anything is written."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from model.architecture.gcnn import GCNN
from model.core import bundle
from model.core.graph import Indices
from model.core.tokenizer import Tokenizer
from model.data.corpus import Corpus
from model.evaluation.scoring import check_tokenizer, logprobs
from model.export import int8, parity, weights
from model.export.arithmetic import Float16
from model.export.flat import float_graph

GOLDEN_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age "
    "of foolishness, it was the epoch of belief, it was the epoch of incredulity.",
    "na\u00efve caf\u00e9 \u2014 \u6211\u4eec \U0001f642\n\n12345 x = y ** 2;\n",
)
"""Texts whose scores are stored in a bundle, so that a server can check itself at start."""
MAX_FLOAT16_RATIO = 1.002
"""Largest perplexity in float16, relative to float32, of a graph that is kept."""


@dataclass(frozen=True, slots=True)
class Exported:
    """Accuracy of the graphs.

    worst: the largest difference from PyTorch in float32, in nats. float16_difference: the mean
    difference in float16, whose graph is left out if it is large. int8_perplexity_ratio,
    float16_perplexity_ratio: as in the bundle's configuration. grid_perplexity_ratio: the
    perplexity of the model on the grid relative to the given one.
    """

    worst: float
    float16_difference: float
    int8_perplexity_ratio: float | None = None
    float16_perplexity_ratio: float | None = None
    grid_perplexity_ratio: float | None = None


def export(
    model: GCNN,
    tokenizer: Tokenizer,
    folder: Path,
    name: str,
    card: str | None = None,
    calibration: Corpus | None = None,
    grid: float | None = None,
) -> Exported:
    """Writes the bundle of a trained model, with 8-bit graphs if there is a corpus to calibrate on.

    grid: see `GCNN.stored`; weights are stored in bytes then. Raises ParityError, with nothing
    written, if a graph and the model differ by more than the tolerance; ValueError if the
    tokenizer, or the corpus's, is not the model's.
    """
    check_tokenizer(model, tokenizer)
    if calibration is not None:
        calibration.check(model.config.vocabulary, model.start_id, tokenizer.fingerprint)
    stored = model.stored(grid)
    golden = [_golden(stored, tokenizer, text) for text in GOLDEN_TEXTS]
    exported: Exported | None = None

    def fill(unfinished: Path) -> None:
        nonlocal exported, golden
        exported = _float_graphs(unfinished, stored, golden)
        if calibration is not None:
            golden, exported = _measured(unfinished, stored, golden, calibration, exported)
            if grid is not None:
                rounded, given = (partial(logprobs, each) for each in (stored, model))
                texts = parity.calibration_texts(calibration, 1)
                ratio = parity.perplexity_ratio(rounded, given, texts)
                exported = replace(exported, grid_perplexity_ratio=ratio)
        tokenizer.save(unfinished / bundle.TOKENIZER)
        tokenizer.save_config(unfinished / bundle.TOKENIZER_CONFIG)
        facts = _config(unfinished, name, model, tokenizer, exported, grid)
        (unfinished / bundle.CONFIG).write_text(facts.model_dump_json(indent=2) + "\n")
        rows = [entry.model_dump() for entry in golden]
        (unfinished / bundle.GOLDEN).write_text(json.dumps(rows) + "\n")
        if card is not None:
            (unfinished / bundle.CARD).write_text(card)

    bundle.write(folder, fill)
    assert exported is not None
    return exported


def _float_graphs(folder: Path, model: GCNN, golden: list[bundle.Golden]) -> Exported:
    """Writes the graphs of a stored model in float32 and float16. Raises ParityError."""
    weights.save_float32(float_graph(model), folder)
    texts = [np.array(entry.ids, np.int64) for entry in golden]
    texts.append(parity.random_text(model))
    worst = parity.check(folder / bundle.GRAPH, model, texts)
    return Exported(worst, write_float16(folder, model, texts))


def _measured(
    folder: Path,
    model: GCNN,
    golden: list[bundle.Golden],
    calibration: Corpus,
    exported: Exported,
) -> tuple[list[bundle.Golden], Exported]:
    """Writes the 8-bit graphs of a stored model, and measures what 8 and 16 bits cost."""
    golden, ratio = int8.write(folder, model, golden, calibration)
    exported = replace(exported, int8_perplexity_ratio=ratio)
    if (folder / bundle.GRAPH_FLOAT16).exists():
        ratio = keep_float16_if_exact(folder, model, calibration)
        exported = replace(exported, float16_perplexity_ratio=ratio)
    return golden, exported


def _config(
    folder: Path,
    name: str,
    model: GCNN,
    tokenizer: Tokenizer,
    exported: Exported,
    grid: float | None,
) -> bundle.BundleConfig:
    """The configuration of a bundle that has all its graphs."""
    has_float16 = (folder / bundle.GRAPH_FLOAT16).exists()
    return bundle.BundleConfig(
        format=bundle.FORMAT,
        name=name,
        created=int(time.time()),
        weights="float16" if grid is None else "int8",
        start_id=tokenizer.start_id,
        end_id=tokenizer.end_id,
        unknown_id=tokenizer.unknown_id,
        model=model.config,
        int8_perplexity_ratio=exported.int8_perplexity_ratio,
        float16_perplexity_ratio=exported.float16_perplexity_ratio if has_float16 else None,
    )


def _golden(model: GCNN, tokenizer: Tokenizer, text: str) -> bundle.Golden:
    ids = [tokenizer.start_id, *tokenizer.encode(text).ids.tolist(), tokenizer.end_id]
    scores = logprobs(model, np.array(ids, np.int64))
    return bundle.Golden(ids=ids, logprobs=[float(score) for score in scores])


def write_float16(folder: Path, model: GCNN, texts: list[Indices]) -> float:
    """Writes the float16 graph of a stored model into a folder that has its float32 graph.

    Returns the mean difference of the log-probabilities, in nats, of the text where it is largest.
    If it is above HALF_TOLERANCE, or not a number, removes the graph. This is measured on a CPU,
    where ONNX Runtime computes most products in float32 and rounds the results.
    """
    weights.save(float_graph(model, Float16), folder, bundle.GRAPH_FLOAT16)
    made = parity.Graph(folder / bundle.GRAPH_FLOAT16, model.config, "float16")
    off = [np.abs(made.run(ids)[0] - logprobs(model, ids)).mean() for ids in texts]
    difference = float(np.max(off))
    if not difference <= parity.HALF_TOLERANCE:
        (folder / bundle.GRAPH_FLOAT16).unlink()
    return difference


def keep_float16_if_exact(folder: Path, model: GCNN, corpus: Corpus) -> float:
    """Returns the perplexity in float16 relative to float32, on held-out documents.

    Removes the graph if it is above MAX_FLOAT16_RATIO, or not a number. Raises ValueError.
    """
    half = parity.Graph(folder / bundle.GRAPH_FLOAT16, model.config, "float16")
    exact = parity.Graph(folder / bundle.GRAPH, model.config, "float32")
    texts = parity.calibration_texts(corpus, 1)
    ratio = parity.perplexity_ratio(half.scores, exact.scores, texts)
    if not ratio <= MAX_FLOAT16_RATIO:
        (folder / bundle.GRAPH_FLOAT16).unlink()
    return ratio
