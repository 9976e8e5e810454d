"""Lays out pieces as a flat batch. Pure."""

from __future__ import annotations

from collections.abc import Collection
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

    tokens: int64 [n]. read_slot: the slot with the state before the first row; None for zero rows,
    which is exact at a text's beginning or with a halo. write_slot: where the state after the last
    row is stored. scored: rows of this piece with targets, int64 [len(scored)]. next_rows: rows of
    this piece whose next-token distribution is wanted. position: of its first row in the sequence.
    top: alternatives for each of the scored rows. halo: how many of the first rows are its halo.
    """

    tokens: Indices
    read_slot: int | None
    write_slot: int | None
    scored: range
    targets: Indices
    next_rows: range
    position: int
    top: int = 0
    halo: int = 0

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.tokens)


@dataclass(slots=True)
class Step:
    """The piece for a stream's next token: one row, whose state is read from and written to a slot.

    A busy server makes thousands a second.
    """

    token: int
    read_slot: int
    position: int

    rows: ClassVar[int] = 1
    halo: ClassVar[int] = 0
    top: ClassVar[int] = 0
    scored: ClassVar[range] = range(0)
    targets: ClassVar[Indices] = NO_ROWS
    next_rows: ClassVar[range] = range(1)

    @property
    def tokens(self) -> Indices:
        """int64 [1]."""
        return np.array([self.token], np.int64)

    @property
    def write_slot(self) -> int:
        """The same slot."""
        return self.read_slot


def plan(
    pieces: Collection[Piece | Step],
    taps: Taps,
    multiple: int = 1,
    tails: TailTerms | None = None,
) -> FlatBatch:
    """One batch of all pieces, in order. `taps`: the model's. `tails`: the terms of the rows whose
    distribution is wanted; None for full distributions.

    Rows, scored rows and wanted distributions are filled up to a multiple of `multiple` with
    dummies: token 0 after zero rows, row 0. Lists of slots that would be empty get SCRATCH_SLOT.
    Consecutive batches of the same streams share all arrays that are `fixed`.
    """
    steps = [piece for piece in pieces if isinstance(piece, Step)]
    if len(steps) < len(pieces):
        return replace(_lay_out(pieces, taps, multiple), tails=tails)
    slots = tuple([step.read_slot for step in steps])
    tokens = pad([step.token for step in steps], 0, multiple)
    batch = _stream_steps(slots, taps, multiple)
    first, *dilated = batch.addresses
    positions = np.array([step.position for step in steps])
    moved = (first, *(_at_positions(each, first.read_slots, positions) for each in dilated))
    return replace(batch, tokens=tokens, addresses=moved, tails=tails)


def _at_positions(addresses: Addresses, slots: Indices, positions: Indices) -> Addresses:
    """The addresses of a dilation when the streams in these slots are at these positions."""
    dilation = addresses.dilation
    rows = slots * dilation + positions % dilation
    return Addresses(dilation, addresses.taps, rows, rows, addresses.carry)


@lru_cache(maxsize=64)
def _stream_steps(slots: tuple[int, ...], taps: Taps, multiple: int) -> FlatBatch:
    """The batch of streams whose states are in these slots, all at position 0 with token 0."""
    steps = len(slots)
    dummies = -steps % multiple

    def addresses_of(dilation: int, columns: int) -> Addresses:
        rows = np.array(slots) * dilation
        table = np.full((steps + dummies, columns), ZERO_ROW, np.int64)
        frames = np.arange(1, steps + 1)[:, None]
        table[:steps, :1] = frames
        table[:steps, 1:] = frames + (steps + dummies + np.arange(columns - 1) * steps)
        # the frames that a token's taps name are the state of the next token
        carry = read_only(np.ascontiguousarray(table[:steps, : columns - 1]))
        return Addresses(dilation, read_only(table), rows, rows, carry)

    return FlatBatch(
        tokens=np.zeros(steps + dummies, np.int64),
        addresses=tuple(addresses_of(*each) for each in taps),
        score_rows=np.zeros(0, np.int64),
        targets=np.zeros(0, np.int64),
        next_rows=pad(np.arange(steps), 0, multiple),
    )


def _lay_out(pieces: Collection[Piece | Step], taps: Taps, multiple: int) -> FlatBatch:
    lengths = np.array([len(piece.tokens) for piece in pieces], np.int64)
    begins = np.cumsum(lengths) - lengths
    layout = Pieces(
        lengths,
        positions=np.array([piece.position for piece in pieces], np.int64),
        reads=_slots([piece.read_slot for piece in pieces]),
        writes=_slots([piece.write_slot for piece in pieces]),
    )
    dummies = -int(lengths.sum()) % multiple
    placed = list(zip(pieces, begins.tolist(), strict=True))
    rows, targets = _scored([(piece, begin) for piece, begin in placed if not piece.top])
    alternative_rows, alternative_targets = _scored(
        [(piece, begin) for piece, begin in placed if piece.top]
    )
    next_rows = _batch_rows([(piece.next_rows, begin) for piece, begin in placed])
    return FlatBatch(
        tokens=pad(np.concatenate([piece.tokens for piece in pieces]), 0, multiple),
        addresses=addresses(layout, taps, dummies),
        score_rows=pad(rows, 0, multiple),
        targets=pad(targets, 0, multiple),
        next_rows=pad(next_rows, 0, multiple),
        alternative_rows=alternative_rows,
        alternative_targets=alternative_targets,
        alternative_count=max(1, *(piece.top for piece in pieces)),
    )


def _scored(placed: list[tuple[Piece | Step, int]]) -> tuple[Indices, Indices]:
    """Rows of the batch that pieces have scored, and their targets: int64 [n] each.

    placed: pieces, each with the row of the batch at which it begins.
    """
    if not placed:
        return NO_ROWS, NO_ROWS
    rows = _batch_rows([(piece.scored, begin) for piece, begin in placed])
    return rows, np.concatenate([piece.targets for piece, _ in placed])


def _slots(slots: list[int | None]) -> Indices:
    return np.array([NONE if slot is None else slot for slot in slots], np.int64)


def _batch_rows(ranges: list[tuple[range, int]]) -> Indices:
    """Rows of the batch, int64 [n], for ranges of rows of pieces that begin at given rows."""
    firsts = [rows.start + begin for rows, begin in ranges if rows]
    if not firsts:
        return NO_ROWS
    counts = np.array([len(rows) for rows, _ in ranges if rows])
    ends = np.cumsum(counts)
    shifts: Indices = np.repeat(firsts - (ends - counts), counts)
    return np.arange(ends[-1]) + shifts
