"""Pieces to a flat batch. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from model.graph import SCRATCH_SLOT, ZERO_ROW, FlatBatch, Indices, filled


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive rows of one sequence, a halo among them.

    tokens: int64 [n]. read_slot: the state that goes before the first row; None for zero rows,
    which is exact at a text's beginning or behind a halo. write_slot: where the state after the
    last row goes. scored: rows of this piece with targets, int64 [len(scored)]. following: rows
    of this piece whose next-token distribution is wanted.
    """

    tokens: Indices
    read_slot: int | None
    write_slot: int | None
    scored: range
    targets: Indices
    following: range


def plan(pieces: Sequence[Piece], taps: int, multiple: int = 1) -> FlatBatch:
    """One batch of all pieces, in order. `taps`: K, columns of the tap table.

    Rows, scored rows and wanted distributions are filled up to a multiple of `multiple` with
    dummies: token 0 behind zero rows, row 0. Lists that would be empty get one: SCRATCH_SLOT.
    Batches of the same streams, a token later, have all arrays but `tokens` in common.
    """
    slots = tuple(piece.write_slot for piece in pieces if _steps(piece))
    if len(slots) == len(pieces):
        tokens = filled([int(piece.tokens[0]) for piece in pieces], 0, multiple)
        return replace(_stream_steps(slots, taps, multiple), tokens=tokens)
    return _planned(pieces, taps, multiple)


def _steps(piece: Piece) -> bool:
    """Whether it is what a stream's next token takes: one row from its state to its state."""
    return (
        len(piece.tokens) == 1
        and piece.read_slot is not None
        and piece.read_slot == piece.write_slot
        and not piece.scored
        and len(piece.following) == 1
    )


@lru_cache(maxsize=64)
def _stream_steps(slots: tuple[int, ...], taps: int, multiple: int) -> FlatBatch:
    """The batch of streams whose states are in these slots, but for its tokens."""
    nothing = np.zeros(0, np.int64)
    one = np.zeros(1, np.int64)
    rows = [Piece(one, slot, slot, range(0), nothing, range(1)) for slot in slots]
    return _planned(rows, taps, multiple)


def _planned(pieces: Sequence[Piece], taps: int, multiple: int) -> FlatBatch:
    lengths = np.array([len(piece.tokens) for piece in pieces], np.int64)
    begins = np.cumsum(lengths) - lengths
    rows = int(lengths.sum())
    reads = [piece.read_slot for piece in pieces if piece.read_slot is not None]
    states = _numbered(pieces)
    dummies = -rows % multiple
    if rows == len(pieces) == len(reads):
        table = _stream_table(rows, dummies, taps)
    else:
        table = _tap_table(lengths, states, dummies, max(len(reads), 1), taps)
    writing = [i for i, piece in enumerate(pieces) if piece.write_slot is not None]
    last = (begins + lengths - 1)[writing]
    return FlatBatch(
        tokens=filled(np.concatenate([piece.tokens for piece in pieces]), 0, multiple),
        taps=table,
        read_slots=filled(reads, SCRATCH_SLOT),
        write_slots=filled([w for p in pieces if (w := p.write_slot) is not None], SCRATCH_SLOT),
        # what a token's taps name is, one token later, the state
        carry=table[last, : taps - 1] if writing else np.full((1, taps - 1), ZERO_ROW, np.int64),
        score_rows=filled(_places([piece.scored for piece in pieces], begins), 0, multiple),
        targets=filled(np.concatenate([piece.targets for piece in pieces]), 0, multiple),
        next_rows=filled(_places([piece.following for piece in pieces], begins), 0, multiple),
    )


def _tap_table(
    lengths: Indices, states: Indices, dummies: int, state_count: int, taps: int
) -> Indices:
    """int64 [T, K]. states: the number of each piece's state, -1 for none. dummies: rows behind."""
    used = int(lengths.sum())
    rows = used + dummies
    back = np.arange(taps)
    table = 1 + np.arange(rows)[:, None] - back
    place = np.arange(used) - np.repeat(np.cumsum(lengths) - lengths, lengths)  # in its piece
    begin = np.flatnonzero(place < taps - 1)  # rows some of whose taps leave the piece
    state = np.repeat(states, lengths)[begin, None]
    age = back - place[begin, None]  # of the state's frame
    carried = np.where(state >= 0, 1 + rows + (age - 1) * state_count + state, ZERO_ROW)
    table[begin] = np.where(age <= 0, table[begin], carried)
    table[used:] = ZERO_ROW
    return table


def _stream_table(rows: int, dummies: int, taps: int) -> Indices:
    """As `_tap_table` for pieces of one row each behind a state: what streams are."""
    table = np.full((rows + dummies, taps), ZERO_ROW, np.int64)
    own = np.arange(1, rows + 1)[:, None]
    table[:rows, :1] = own
    table[:rows, 1:] = own + (rows + dummies + np.arange(taps - 1) * rows)
    return table


def _numbered(pieces: Sequence[Piece]) -> Indices:
    numbers, count = [], 0
    for piece in pieces:
        numbers.append(-1 if piece.read_slot is None else count)
        count += piece.read_slot is not None
    return np.array(numbers, np.int64)


def _places(ranges: Sequence[range], begins: Indices) -> Indices:
    """Rows of the batch for ranges of rows of the pieces."""
    parts = [np.arange(r.start, r.stop) + b for r, b in zip(ranges, begins, strict=True) if r]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
