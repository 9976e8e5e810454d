"""Log-probabilities and perplexity of documents by the PyTorch model."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from model.data import Corpus
from model.gcnn import GCNN
from model.measures import Totals

_PIECE = 1024


@torch.inference_mode()
def logprobs(model: GCNN, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Log-probability of every token but the first, in nats.

    ids: int64 [N], the start symbol first; a start symbol further on begins a new text.
    Returns float32 [N - 1]. Long texts go in pieces behind a halo of R - 1 tokens, which gives
    what the whole would: no prediction sees further back.
    """
    halo = model.config.receptive_field - 1
    found = []
    for begin in range(0, len(ids) - 1, _PIECE):
        end = min(begin + _PIECE, len(ids) - 1)
        first = max(0, begin - halo)
        inputs = torch.from_numpy(ids[first:end])[None]
        targets = torch.from_numpy(ids[begin + 1 : end + 1])
        hidden = model.hidden(inputs)[0, begin - first :]
        found.append(-model.output.losses(hidden, targets).numpy())
    return np.concatenate(found) if found else np.zeros(0, np.float32)


def evaluate(model: GCNN, corpus: Corpus) -> Totals:
    """Sums over all documents, each with its end symbol, which counts as a word."""
    scores, targets = _scored(model, corpus, len(corpus.tokens))
    counted = targets != model.start_id
    counts = corpus.counts
    return Totals(
        float(scores[counted].sum(dtype=np.float64)),
        int(counted.sum()),
        counts.words + counts.documents,
        counts.bytes,
        counts.unknown,
    )


def validation_loss(model: GCNN, corpus: Corpus, tokens: int) -> float:
    """Nats per token over the first `tokens` tokens of a corpus."""
    scores, targets = _scored(model, corpus, tokens)
    return -float(scores[targets != model.start_id].mean(dtype=np.float64))


def _scored(
    model: GCNN, corpus: Corpus, tokens: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    ids = np.asarray(corpus.tokens[:tokens], np.int64)
    training = model.training
    model.eval()
    scores = logprobs(model, ids)
    model.train(training)
    return scores, ids[1:]
