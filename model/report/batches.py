"""Flat batches of known texts, laid out for a measurement without the server's planner.

Legend: see `model.graph`.
"""

from __future__ import annotations

import numpy as np

from model import graph
from model.graph import FlatBatch, Indices

_SLOT = 1
"""The pool's slot of the one text that is scored in pieces."""


def side_by_side(tokens: Indices, targets: Indices, taps: int) -> FlatBatch:
    """Whole texts of one length, all rows scored. tokens, targets: int64 [B, N]; T = B * N."""
    count, length = tokens.shape
    rows = np.arange(count * length)[:, None]
    back = np.arange(taps)
    inside = (rows % length) >= back
    return FlatBatch(
        tokens=tokens.reshape(-1),
        taps=np.where(inside, graph.frame_row(0) + rows - back, graph.ZERO_ROW),
        read_slots=np.array([graph.SCRATCH_SLOT]),
        write_slots=np.array([graph.SCRATCH_SLOT]),
        carry=np.full((1, taps - 1), graph.ZERO_ROW),
        score_rows=np.arange(count * length),
        targets=targets.reshape(-1),
        next_rows=np.array([0]),
    )


def piece(tokens: Indices, targets: Indices, taps: int, *, first: bool) -> FlatBatch:
    """A piece of one text, all rows scored; its state is read, unless `first`, and written.

    tokens, targets: int64 [T].
    """
    rows = len(tokens)

    def addresses(places: Indices) -> Indices:
        before = graph.ZERO_ROW if first else graph.state_row(rows, 1, 0, 0) - places
        return np.where(places >= 0, graph.frame_row(0) + places, before)

    return FlatBatch(
        tokens=tokens,
        taps=addresses(np.arange(rows)[:, None] - np.arange(taps)),
        read_slots=np.array([graph.SCRATCH_SLOT if first else _SLOT]),
        write_slots=np.array([_SLOT]),
        carry=addresses(rows - np.arange(1, taps))[None],
        score_rows=np.arange(rows),
        targets=targets,
        next_rows=np.array([0]),
    )
