"""Log-probabilities and perplexity of documents with the PyTorch model."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from model.architecture.causal import CausalModel
from model.core.measures import Totals
from model.core.text_cache import with_cache
from model.core.tokenizer import Tokenizer
from model.data.corpus import Corpus

_PIECE = 1024


@torch.inference_mode()
def logprobs(model: CausalModel, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Log-probability of every token but the first, in nats.

    ids: int64 [N], the start symbol first; a later start symbol begins a new text. Returns float32
    [N - 1]. Long texts are computed in pieces, with the same result.
    """
    pieces = []
    for number, hidden in enumerate(model.pieces(ids[:-1], _PIECE)):
        begin = number * _PIECE + 1
        targets = torch.from_numpy(ids[begin : begin + len(hidden)]).to(hidden.device)
        pieces.append(-model.output.losses(hidden, targets).cpu().numpy())
    return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)


def check_tokenizer(model: CausalModel, tokenizer: Tokenizer) -> None:
    """Raises ValueError if the tokens of a model cannot be those of a tokenizer."""
    stated = (model.embedding.num_embeddings, model.start_id)
    if (tokenizer.size, tokenizer.start_id) != stated:
        raise ValueError(
            f"the tokenizer has {tokenizer.size} tokens and start symbol {tokenizer.start_id}, "
            f"the model {stated[0]} and {stated[1]}"
        )


def evaluate(model: CausalModel, corpus: Corpus, *, cache: bool = False) -> Totals:
    """Sums over all documents, each with its end symbol, which counts as a word.

    cache: whether to mix in a cache of the document's earlier tokens (`model.core.text_cache`).
    Raises ValueError for a corpus of another tokenizer.
    """
    corpus.check(model.embedding.num_embeddings, model.start_id, None)
    scores, targets = _score(model, corpus, len(corpus.tokens))
    if cache:
        for begin, end in pairwise(corpus.documents.tolist()):
            ids = corpus.ids(begin, end)
            scores[begin : end - 1] = with_cache(ids, scores[begin : end - 1])
    counted = targets != model.start_id
    counts = corpus.counts
    return Totals(
        float(scores[counted].sum(dtype=np.float64)),
        int(counted.sum()),
        counts.words + counts.documents,
        counts.bytes,
        counts.unknown,
    )


def validation_loss(model: CausalModel, corpus: Corpus, tokens: int) -> float:
    """Nats per token over the first `tokens` tokens of a corpus."""
    scores, targets = _score(model, corpus, tokens)
    return -float(scores[targets != model.start_id].mean(dtype=np.float64))


def _score(
    model: CausalModel, corpus: Corpus, tokens: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    ids = corpus.ids(0, tokens)
    training = model.training
    model.eval()
    scores = logprobs(model, ids)
    model.train(training)
    return scores, ids[1:]
