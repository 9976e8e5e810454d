"""Pieces to a flat batch. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import numpy as np

from model.graph import SCRATCH_SLOT, ZERO_ROW, FlatBatch, Indices, TailTerms, filled


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

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.tokens)


@dataclass(slots=True)
class Step:
    """What a stream's next token takes, as a piece: one row, from the state in a slot to the same.

    Thousands are made a second.
    """

    token: int
    slot: int

    rows: ClassVar[int] = 1
    scored: ClassVar[range] = range(0)
    targets: ClassVar[Indices] = np.zeros(0, np.int64)
    following: ClassVar[range] = range(1)

    @property
    def tokens(self) -> Indices:
        """int64 [1]."""
        return np.array([self.token], np.int64)

    @property
    def read_slot(self) -> int:
        """The slot."""
        return self.slot

    @property
    def write_slot(self) -> int:
        """The slot."""
        return self.slot


def plan(
    pieces: Sequence[Piece | Step],
    taps: int,
    multiple: int = 1,
    tails: TailTerms | None = None,
) -> FlatBatch:
    """One batch of all pieces, in order. `taps`: K, columns of the tap table. `tails`: the terms of
    the rows whose distribution is wanted; None for whole ones.

    Rows, scored rows and wanted distributions are filled up to a multiple of `multiple` with
    dummies: token 0 behind zero rows, row 0. Lists of slots that would be empty get SCRATCH_SLOT.
    Batches of the same streams, a token later, have all arrays but `tokens` and `tails` in common.
    """
    steps = [piece for piece in pieces if isinstance(piece, Step)]
    if len(steps) < len(pieces):
        return replace(_planned(pieces, taps, multiple), tails=tails)
    slots = tuple([step.slot for step in steps])
    tokens = filled([step.token for step in steps], 0, multiple)
    return replace(_stream_steps(slots, taps, multiple), tokens=tokens, tails=tails)


@lru_cache(maxsize=64)
def _stream_steps(slots: tuple[int, ...], taps: int, multiple: int) -> FlatBatch:
    """The batch of streams whose states are in these slots, but for its tokens."""
    return _planned([Step(0, slot) for slot in slots], taps, multiple)


def _planned(pieces: Sequence[Piece | Step], taps: int, multiple: int) -> FlatBatch:
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
        read_slots=filled(reads, SCRATCH_SLOT, least=1),
        write_slots=filled(
            [w for p in pieces if (w := p.write_slot) is not None], SCRATCH_SLOT, least=1
        ),
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


def _numbered(pieces: Sequence[Piece | Step]) -> Indices:
    numbers, count = [], 0
    for piece in pieces:
        numbers.append(-1 if piece.read_slot is None else count)
        count += piece.read_slot is not None
    return np.array(numbers, np.int64)


def _places(ranges: Sequence[range], begins: Indices) -> Indices:
    """Rows of the batch for ranges of rows of the pieces."""
    parts = [np.arange(r.start, r.stop) + b for r, b in zip(ranges, begins, strict=True) if r]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
