"""Checkpoint to bundle. Parity with PyTorch is checked before anything is written."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
from onnxscript import ir

from model import bundle, graph
from model.evaluate import logprobs
from model.flat import FlatGraph
from model.gcnn import GCNN
from model.tokenizer import Tokenizer

TOLERANCE = 1e-4
"""Nats by which a log-probability of the graph may differ from PyTorch's float32."""

GOLDEN_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age "
    "of foolishness, it was the epoch of belief, it was the epoch of incredulity.",
    "na\u00efve caf\u00e9 \u2014 \u6211\u4eec \U0001f642\n\n12345 x = y ** 2;\n",
)
"""Texts whose scores travel in a bundle, so that a server can check itself at start."""


class ParityError(Exception):
    """The graph does not compute what the model does."""


def export(
    model: GCNN, tokenizer: Tokenizer, folder: Path, name: str, card: str | None = None
) -> float:
    """Writes the bundle of a trained model; returns the largest difference found, in nats.

    Raises ParityError, with nothing written, when the graph and the model disagree by more than
    TOLERANCE; ValueError when the tokenizer is not the model's.
    """
    config = model.config
    if tokenizer.size != config.vocabulary or tokenizer.start_id != model.start_id:
        raise ValueError(
            f"the tokenizer has {tokenizer.size} tokens and start symbol {tokenizer.start_id}, "
            f"the model {config.vocabulary} and {model.start_id}"
        )
    folded = model.folded(torch.float16)
    golden = [_golden(folded, tokenizer, text) for text in GOLDEN_TEXTS]
    worst = 0.0

    def fill(partial: Path) -> None:
        nonlocal worst
        ir.save(FlatGraph(folded).build(), partial / bundle.GRAPH)
        worst = _check(partial / bundle.GRAPH, folded, golden)
        tokenizer.save(partial / bundle.TOKENIZER)
        facts = bundle.BundleConfig(
            format=bundle.FORMAT,
            name=name,
            created=int(time.time()),
            weights="float16",
            start_id=tokenizer.start_id,
            end_id=tokenizer.end_id,
            unknown_id=tokenizer.unknown_id,
            model=config,
        )
        (partial / bundle.CONFIG).write_text(facts.model_dump_json(indent=2) + "\n")
        rows = [entry.model_dump() for entry in golden]
        (partial / bundle.GOLDEN).write_text(json.dumps(rows) + "\n")
        if card is not None:
            (partial / bundle.CARD).write_text(card)

    bundle.write(folder, fill)
    return worst


def _golden(model: GCNN, tokenizer: Tokenizer, text: str) -> bundle.Golden:
    ids = [tokenizer.start_id, *tokenizer.encode(text).ids.tolist(), tokenizer.end_id]
    scores = logprobs(model, np.array(ids, np.int64))
    return bundle.Golden(ids=ids, logprobs=[float(score) for score in scores])


def _check(path: Path, model: GCNN, golden: Sequence[bundle.Golden]) -> float:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    texts: list[npt.NDArray[np.int64]] = [np.array(entry.ids, np.int64) for entry in golden]
    rng = np.random.default_rng(0)
    texts.append(rng.integers(0, model.config.vocabulary, 4 * model.config.receptive_field))
    texts[-1][0] = model.start_id
    texts[-1][1:][texts[-1][1:] == model.start_id] = (model.start_id + 1) % model.config.vocabulary
    worst = 0.0
    for ids in texts:
        feeds: dict[str, npt.NDArray[np.generic]] = {
            **graph.whole_text(ids, model.config.taps).feeds(model.config),
            **graph.empty_pools(model.config, slots=1),
        }
        found, following = session.run([graph.LOGPROBS, graph.NEXT_LOGPROBS], feeds)
        with torch.inference_mode():
            expected = model(torch.from_numpy(ids)[None])[0, -1].numpy()
        worst = max(
            worst,
            float(np.abs(found - logprobs(model, ids)).max()),
            float(np.abs(following[0] - expected).max()),
        )
    if not worst <= TOLERANCE:
        raise ParityError(
            f"the graph differs from PyTorch by {worst:.2e} nats, more than {TOLERANCE:.0e}; "
            "no bundle was written"
        )
    return worst
