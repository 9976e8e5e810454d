"""Texts of a corpus for choosing scales, and others for measuring the graphs."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from model.core.graph import Floats, Indices
from model.data.corpus import Corpus

Scorer = Callable[[Indices], Floats]
"""int64 [N] to the log-probability of every token but the first, float32 [N - 1], in nats."""

_TEXTS, _TEXT_TOKENS = 100, 512
"""Number of texts for choosing scales, and for measuring; each is cut to this many tokens."""


def calibration_texts(corpus: Corpus, first: int) -> list[Indices]:
    """Beginnings of every other document, int64 [n] each, from the document `first` on.

    Scales are chosen on the documents from 0 on, graphs measured on those from 1 on. Raises
    ValueError if there is none.
    """
    bounds = corpus.documents
    begins = bounds[:-1][first::2][:_TEXTS]
    ends = bounds[1:][first::2][:_TEXTS]
    if not len(begins):
        raise ValueError(
            f"{corpus.folder}: calibration needs at least two documents, which `convlm prepare` "
            "makes of several files, or of one by --marker"
        )
    return [
        corpus.ids(begin, min(begin + _TEXT_TOKENS, end))
        for begin, end in zip(begins, ends, strict=True)
    ]


def perplexity_ratio(made: Scorer, exact: Scorer, unseen: list[Indices]) -> float:
    """The perplexity of texts by one scorer divided by that by another."""
    losses = [
        -np.concatenate([scores(ids) for ids in unseen]).mean(dtype=np.float64)
        for scores in (made, exact)
    ]
    return math.exp(losses[0] - losses[1])
