"""Flat batches of given texts for measurements, made without the server's planner.

Legend: see `model.core.graph`.
"""

from __future__ import annotations

import numpy as np

from model.core.addresses import NONE, Pieces, addresses
from model.core.config import Taps
from model.core.flat_batch import FlatBatch
from model.core.graph import Indices

_SLOT = 1
"""The slot of the one text that is scored in pieces."""


def side_by_side(tokens: Indices, targets: Indices, taps: Taps) -> FlatBatch:
    """Complete texts of one length, all rows scored. tokens, targets: int64 [B, N]; T = B * N."""
    count, length = tokens.shape
    none = np.full(count, NONE)
    texts = Pieces(np.full(count, length), np.zeros(count, np.int64), none, none)
    return FlatBatch(
        tokens=tokens.reshape(-1),
        addresses=addresses(texts, taps),
        score_rows=np.arange(count * length),
        targets=targets.reshape(-1),
        next_rows=np.array([0]),
    )


def piece(tokens: Indices, targets: Indices, taps: Taps, begin: int) -> FlatBatch:
    """A piece of one text, all rows scored. Its state is written, and read unless `begin` is 0.

    tokens, targets: int64 [T].
    """
    pieces = Pieces.one(len(tokens), begin, _SLOT if begin else NONE, _SLOT)
    return FlatBatch(
        tokens=tokens,
        addresses=addresses(pieces, taps),
        score_rows=np.arange(len(tokens)),
        targets=targets,
        next_rows=np.array([0]),
    )
