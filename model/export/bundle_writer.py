"""Checkpoint to bundle. Parity with PyTorch is checked before anything is written."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from onnxscript import ir

from model.architecture.gcnn import GCNN
from model.core import bundle
from model.core.tokenizer import Tokenizer
from model.data.corpus import Corpus
from model.evaluation.scoring import check_tokenizer, logprobs
from model.export import float16 as export_half
from model.export import held_out, parity
from model.export import int8 as export_int8
from model.export.flat import float32_graph

_OUTSIDE_BYTES = 4096
"""Weights from this size on go to a file of their own, which all graphs read."""

GOLDEN_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age "
    "of foolishness, it was the epoch of belief, it was the epoch of incredulity.",
    "na\u00efve caf\u00e9 \u2014 \u6211\u4eec \U0001f642\n\n12345 x = y ** 2;\n",
)
"""Texts whose scores travel in a bundle, so that a server can check itself at start."""


@dataclass(frozen=True, slots=True)
class Exported:
    """worst: the largest difference from PyTorch in float32, in nats. float16_difference: the mean
    one in float16, which is left out if it is large. The ratios are those in the bundle's
    configuration, and the perplexity of the model on the grid over that of the one that was given.
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
    """Writes the bundle of a trained model, in float16 too, and in 8 bits if there is a corpus to
    calibrate on. grid: see `GCNN.stored`; weights are stored in bytes then.

    Raises ParityError, with nothing written, when a graph and the model disagree by more than
    the tolerance; ValueError when the tokenizer, or that of the corpus, is not the model's.
    """
    config = model.config
    check_tokenizer(model, tokenizer)
    if calibration is not None:
        calibration.check(config.vocabulary, model.start_id, tokenizer.fingerprint)
    stored = model.stored(grid)
    golden = [_golden(stored, tokenizer, text) for text in GOLDEN_TEXTS]
    found: Exported | None = None

    def fill(unfinished: Path) -> None:
        nonlocal found, golden
        path = unfinished / bundle.GRAPH
        _save(float32_graph(stored), unfinished)
        texts = [np.array(entry.ids, np.int64) for entry in golden]
        texts.append(parity.random_text(stored))
        worst = parity.check(path, stored, texts)
        found = Exported(worst, export_half.write(unfinished, stored, texts))
        if calibration is not None and grid is not None:
            rounded, given = (partial(logprobs, each) for each in (stored, model))
            price = held_out.perplexity_ratio(rounded, given, held_out.texts(calibration, 1))
            found = replace(found, grid_perplexity_ratio=price)
        if calibration is not None:
            golden, eight = export_int8.write(unfinished, stored, golden, calibration)
            found = replace(found, int8_perplexity_ratio=eight)
            if (unfinished / bundle.GRAPH_FLOAT16).exists():
                half = export_half.keep_if_exact(unfinished, stored, calibration)
                found = replace(found, float16_perplexity_ratio=half)
        tokenizer.save(unfinished / bundle.TOKENIZER)
        tokenizer.save_config(unfinished / bundle.TOKENIZER_CONFIG)
        kept = (unfinished / bundle.GRAPH_FLOAT16).exists()
        half_ratio = found.float16_perplexity_ratio if kept else None
        facts = bundle.BundleConfig(
            format=bundle.FORMAT,
            name=name,
            created=int(time.time()),
            weights="float16" if grid is None else "int8",
            start_id=tokenizer.start_id,
            end_id=tokenizer.end_id,
            unknown_id=tokenizer.unknown_id,
            model=config,
            int8_perplexity_ratio=found.int8_perplexity_ratio,
            float16_perplexity_ratio=half_ratio,
        )
        (unfinished / bundle.CONFIG).write_text(facts.model_dump_json(indent=2) + "\n")
        rows = [entry.model_dump() for entry in golden]
        (unfinished / bundle.GOLDEN).write_text(json.dumps(rows) + "\n")
        if card is not None:
            (unfinished / bundle.CARD).write_text(card)

    bundle.write(folder, fill)
    assert found is not None
    return found


def _save(made: ir.Model, folder: Path) -> None:
    """Saves the float32 graph, its large weights in files of their own."""
    known = ((v, v.const_value) for v in made.graph.initializers.values())
    large = [(v, w) for v, w in known if w is not None and w.nbytes >= _OUTSIDE_BYTES]
    for file in (bundle.NGRAMS, bundle.WEIGHTS):
        chosen = [pair for pair in large if (file == bundle.NGRAMS) is _is_ngrams(pair[0].name)]
        if chosen:
            outside = ir.external_data.convert_tensors_to_external(
                [w for _, w in chosen], folder, file
            )
            for (value, _), tensor in zip(chosen, outside, strict=True):
                value.const_value = tensor
    ir.save(made, folder / bundle.GRAPH)


def _is_ngrams(name: str | None) -> bool:
    return name is not None and name.startswith("ngram_") and name.endswith("_table")


def _golden(model: GCNN, tokenizer: Tokenizer, text: str) -> bundle.Golden:
    ids = [tokenizer.start_id, *tokenizer.encode(text).ids.tolist(), tokenizer.end_id]
    scores = logprobs(model, np.array(ids, np.int64))
    return bundle.Golden(ids=ids, logprobs=[float(score) for score in scores])
