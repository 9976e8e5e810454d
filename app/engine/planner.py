"""Pieces to a flat batch. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import numpy as np

from model.core.addresses import NONE, Pieces, addresses
from model.core.config import Taps
from model.core.flat_batch import NO_ROWS, Addresses, FlatBatch, TailTerms, pad, read_only
from model.core.graph import ZERO_ROW, Indices


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive rows of one sequence, a halo among them.

    tokens: int64 [n]. read_slot: the state that goes before the first row; None for zero rows,
    which is exact at a text's beginning or behind a halo. write_slot: where the state after the
    last row goes. scored: rows of this piece with targets, int64 [len(scored)]. following: rows
    of this piece whose next-token distribution is wanted. position: of its first row in the
    sequence. top: most probable tokens that are listed for each of the scored rows.
    """

    tokens: Indices
    read_slot: int | None
    write_slot: int | None
    scored: range
    targets: Indices
    following: range
    position: int
    top: int = 0

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
    position: int

    rows: ClassVar[int] = 1
    top: ClassVar[int] = 0
    scored: ClassVar[range] = range(0)
    targets: ClassVar[Indices] = NO_ROWS
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
    taps: Taps,
    multiple: int = 1,
    tails: TailTerms | None = None,
) -> FlatBatch:
    """One batch of all pieces, in order. `taps`: the model's. `tails`: the terms of the rows whose
    distribution is wanted; None for whole ones.

    Rows, scored rows and wanted distributions are filled up to a multiple of `multiple` with
    dummies: token 0 behind zero rows, row 0. Lists of slots that would be empty get SCRATCH_SLOT.
    Batches of the same streams, a token later, have all arrays in common that are `fixed`.
    """
    steps = [piece for piece in pieces if isinstance(piece, Step)]
    if len(steps) < len(pieces):
        return replace(_planned(pieces, taps, multiple), tails=tails)
    slots = tuple([step.slot for step in steps])
    tokens = pad([step.token for step in steps], 0, multiple)
    batch = _stream_steps(slots, taps, multiple)
    moved = batch.addresses
    if len(taps) > 1:
        positions = np.array([step.position for step in steps])
        moved = (moved[0], *(_moved(one, moved[0].read_slots, positions) for one in moved[1:]))
    return replace(batch, tokens=tokens, addresses=moved, tails=tails)


def _moved(one: Addresses, slots: Indices, positions: Indices) -> Addresses:
    """The addresses of a dilation when streams in these slots are at these positions."""
    rows = slots * one.dilation + positions % one.dilation
    return Addresses(one.dilation, one.taps, rows, rows, one.carry)


@lru_cache(maxsize=64)
def _stream_steps(slots: tuple[int, ...], taps: Taps, multiple: int) -> FlatBatch:
    """The batch of streams whose states are in these slots, all at position 0 with token 0."""
    steps = len(slots)
    own = np.array(slots)
    dummies = -steps % multiple

    def addressed(dilation: int, columns: int) -> Addresses:
        table, rows = _stream_table(steps, dummies, columns), own * dilation
        # what a token's taps name is, one token later, the state
        carry = read_only(np.ascontiguousarray(table[:steps, : columns - 1]))
        return Addresses(dilation, read_only(table), rows, rows, carry)

    return FlatBatch(
        tokens=np.zeros(steps + dummies, np.int64),
        addresses=tuple(addressed(*each) for each in taps),
        score_rows=np.zeros(0, np.int64),
        targets=np.zeros(0, np.int64),
        next_rows=pad(np.arange(steps), 0, multiple),
    )


def _stream_table(rows: int, dummies: int, taps: int) -> Indices:
    """The taps of pieces of one row each behind a state, whatever the dilation."""
    table = np.full((rows + dummies, taps), ZERO_ROW, np.int64)
    own = np.arange(1, rows + 1)[:, None]
    table[:rows, :1] = own
    table[:rows, 1:] = own + (rows + dummies + np.arange(taps - 1) * rows)
    return table


def _planned(pieces: Sequence[Piece | Step], taps: Taps, multiple: int) -> FlatBatch:
    lengths = np.array([len(piece.tokens) for piece in pieces], np.int64)
    begins = np.cumsum(lengths) - lengths
    laid = Pieces(
        lengths,
        positions=np.array([piece.position for piece in pieces], np.int64),
        reads=_slots([piece.read_slot for piece in pieces]),
        writes=_slots([piece.write_slot for piece in pieces]),
    )
    dummies = -int(lengths.sum()) % multiple
    first_rows = begins.tolist()
    laid_out = list(zip(pieces, first_rows, strict=True))
    rows, targets = _scored([(piece, begin) for piece, begin in laid_out if not piece.top])
    alternative_rows, alternative_targets = _scored(
        [(piece, begin) for piece, begin in laid_out if piece.top]
    )
    return FlatBatch(
        tokens=pad(np.concatenate([piece.tokens for piece in pieces]), 0, multiple),
        addresses=addresses(laid, taps, dummies),
        score_rows=pad(rows, 0, multiple),
        targets=pad(targets, 0, multiple),
        next_rows=pad(_places([piece.following for piece in pieces], first_rows), 0, multiple),
        alternative_rows=alternative_rows,
        alternative_targets=alternative_targets,
        alternative_count=max(1, *(piece.top for piece in pieces)),
    )


def _scored(pieces: Sequence[tuple[Piece | Step, int]]) -> tuple[Indices, Indices]:
    """Rows of the batch that pieces have scored, and their targets: int64 [n] each.

    pieces: each with the row of the batch at which it begins.
    """
    if not pieces:
        return NO_ROWS, NO_ROWS
    rows = _places([piece.scored for piece, _ in pieces], [begin for _, begin in pieces])
    return rows, np.concatenate([piece.targets for piece, _ in pieces])


def _slots(slots: Sequence[int | None]) -> Indices:
    return np.array([NONE if slot is None else slot for slot in slots], np.int64)


def _places(ranges: Sequence[range], begins: Sequence[int]) -> Indices:
    """Rows of the batch for ranges of rows of the pieces."""
    firsts = [r.start + begin for r, begin in zip(ranges, begins, strict=True) if r]
    if not firsts:
        return NO_ROWS
    counts = np.array([len(r) for r in ranges if r])
    ends = np.cumsum(counts)
    shifts: Indices = np.repeat(firsts - (ends - counts), counts)
    return np.arange(ends[-1]) + shifts
