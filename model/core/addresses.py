"""Addresses of the frames that the rows of a batch read, in the batch itself or in states.

Legend: see `model.core.graph`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Self

import numpy as np

from model.core.config import Taps
from model.core.flat_batch import Addresses, read_only
from model.core.graph import SCRATCH_SLOT, ZERO_ROW, Indices, frame_row, state_row

_SCRATCH = read_only(np.array([SCRATCH_SLOT]))
NONE = -1
"""Instead of a slot: no state. Before a piece that reads none are zero rows."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """Consecutive pieces of a batch, int64 [n] each.

    lengths: numbers of rows. positions: of the first rows in their texts. reads, writes: slots of
    the states before and after the pieces, or NONE.
    """

    lengths: Indices
    positions: Indices
    reads: Indices
    writes: Indices

    @classmethod
    def one(cls, length: int, position: int, read: int, write: int) -> Self:
        """A single piece."""
        return cls(*(np.array([number]) for number in (length, position, read, write)))


def addresses(pieces: Pieces, taps: Taps, dummies: int = 0) -> tuple[Addresses, ...]:
    """The addresses of each dilation. dummies: rows after all pieces, which read zero rows.

    Each step is done for all dilations at once: for the few pieces of an ordinary batch it takes as
    long for all as for one.
    """
    layout = _Layout.of(pieces, dummies)
    columns = _Columns.of(taps)
    rows = np.arange(len(layout.numbers))[:, None]
    tables = np.zeros((layout.rows, len(columns.back)), np.int64)
    inside = layout.numbers[:, None] >= columns.back
    np.copyto(tables[: len(rows)], frame_row(rows - columns.back), where=inside)
    if layout.stateless:
        tables_of_each = zip(taps, columns.cut(tables), strict=True)
        return tuple(_stateless(dilation, table) for (dilation, _), table in tables_of_each)
    states = _States.of(layout, columns.dilations)
    _fill_in(tables, layout, columns, states)
    parts = zip(
        taps,
        columns.cut(tables),
        states.slots(pieces.reads, states.read),
        states.slots(pieces.writes, states.written),
        states.carry(columns.most),
        strict=True,
    )
    return tuple(
        Addresses(dilation, table, reads, writes, np.ascontiguousarray(carry[:, : count - 1]))
        for (dilation, count), table, reads, writes, carry in parts
    )


@dataclass(frozen=True, slots=True)
class _Layout:
    """The rows of pieces. begins: int64 [n], the first row of each piece. pieces_of, numbers: int64
    [N], the piece of each row and the row's number in it. rows: their count with the dummies.
    stateless: no piece reads or writes a state."""

    pieces: Pieces
    begins: Indices
    pieces_of: Indices
    numbers: Indices
    rows: int
    stateless: bool

    @classmethod
    def of(cls, pieces: Pieces, dummies: int) -> Self:
        begins = np.cumsum(pieces.lengths) - pieces.lengths
        pieces_of = np.repeat(np.arange(len(begins)), pieces.lengths)
        numbers = np.arange(len(pieces_of)) - begins[pieces_of]
        stateless = not ((pieces.reads >= 0).any() or (pieces.writes >= 0).any())
        return cls(pieces, begins, pieces_of, numbers, len(pieces_of) + dummies, stateless)


@dataclass(frozen=True, slots=True)
class _Columns:
    """The columns of the tap tables of all D dilations, C side by side.

    dilations: int64 [D]. kinds, steps, numbers, back: int64 [C], for each column the number of its
    dilation, the dilation, its number in that table, and how many rows back its tap is. most: the
    columns of the widest table.
    """

    dilations: Indices
    kinds: Indices
    steps: Indices
    numbers: Indices
    back: Indices
    ends: tuple[int, ...]
    most: int

    @classmethod
    @lru_cache(maxsize=16)
    def of(cls, taps: Taps) -> Self:
        dilations = np.array([dilation for dilation, _ in taps])
        widths = np.array([columns for _, columns in taps])
        kinds, numbers = _repeat(widths)
        ends = tuple(np.cumsum(widths).tolist())
        steps = dilations[kinds]
        return cls(dilations, kinds, steps, numbers, numbers * steps, ends, int(widths.max()))

    def cut(self, tables: Indices) -> list[Indices]:
        """int64 [rows, C] to the tables of each dilation."""
        bounds = pairwise((0, *self.ends))
        return [np.ascontiguousarray(tables[:, first:last]) for first, last in bounds]


@dataclass(frozen=True, slots=True)
class _States:
    """The states that pieces read and write: for each of D dilations, one for each phase.

    read, written: int64 [D, n], phases of each piece. first: int64 [D, n], the number of a piece's
    first state among all that are read. counts: int64 [D], how many are read.
    """

    layout: _Layout
    dilations: Indices
    read: Indices
    written: Indices
    first: Indices
    counts: Indices

    @classmethod
    def of(cls, layout: _Layout, dilations: Indices) -> Self:
        reads, writes = layout.pieces.reads, layout.pieces.writes
        all_phases = dilations[:, None]
        touched = np.minimum(layout.pieces.lengths, all_phases)  # phases that have rows
        # a state moves to another slot with all phases; in its slot, phases without rows stay
        stays = reads == writes
        read = np.where(reads < 0, 0, np.where(stays | (writes < 0), touched, all_phases))
        written = np.where(writes < 0, 0, np.where(stays, touched, all_phases))
        sums = np.cumsum(read, axis=1)
        return cls(layout, dilations, read, written, sums - read, sums[:, -1])

    def before(self, kind: Indices, piece: Indices, phase: Indices, age: Indices) -> Indices:
        """Addresses of frames of an age in the states of pieces and phases, zero rows where no
        state is read, by NumPy's broadcasting. kind: the number of the dilation."""
        state = self.first[kind, piece] + phase
        address = state_row(self.layout.rows, self.counts[kind], state, age)
        return np.where(self.layout.pieces.reads[piece] >= 0, address, ZERO_ROW)

    def slots(self, slots: Indices, counts: Indices) -> list[Indices]:
        """Rows of the pools of each dilation, for as many phases of the pieces' slots as `counts`
        says, [D, n]; a dummy if there are none."""
        if not counts.any():
            return [np.array([SCRATCH_SLOT])] * len(self.dilations)
        kind, piece, phase = _phases(counts)
        dilation = self.dilations[kind]
        rows = slots[piece] * dilation + (self.layout.pieces.positions[piece] + phase) % dilation
        return _cut(rows, counts)

    def carry(self, columns: int) -> list[Indices]:
        """Addresses of the frames of the states to write: int64 [W, columns - 1] for each dilation,
        which needs only its first columns."""
        if not self.written.any():
            return [np.full((1, columns - 1), ZERO_ROW, np.int64)] * len(self.dilations)
        kind, piece, phase = _phases(self.written)
        dilation = self.dilations[kind]
        count = (self.layout.pieces.lengths[piece] - phase + dilation - 1) // dilation  # of rows
        number = count[:, None] - 1 - np.arange(columns - 1)  # from the newest
        row = (self.layout.begins[piece] + phase)[:, None] + number * dilation[:, None]
        older = self.before(kind[:, None], piece[:, None], phase[:, None], -number)
        return _cut(np.where(number >= 0, frame_row(row), older), self.written)


def _fill_in(tables: Indices, layout: _Layout, columns: _Columns, states: _States) -> None:
    """Writes the taps before the beginnings of pieces: frames of states."""
    reads = layout.pieces.reads[layout.pieces_of] >= 0
    leaving = np.flatnonzero(reads & (layout.numbers < columns.back.max()))
    # the phase of each row, and the row's number among those of its phase
    number, phase = np.divmod(layout.numbers[leaving, None], columns.steps)
    age = columns.numbers - number
    carried = states.before(columns.kinds, layout.pieces_of[leaving, None], phase, age)
    tables[leaving] = np.where(age <= 0, tables[leaving], carried)


def _stateless(dilation: int, table: Indices) -> Addresses:
    return Addresses(dilation, table, _SCRATCH, _SCRATCH, _carry_of_none(table.shape[1] - 1))


@lru_cache(maxsize=16)
def _carry_of_none(ages: int) -> Indices:
    """A dummy, the same array for all batches, like `_SCRATCH`: it has to be bound only once."""
    return read_only(np.full((1, ages), ZERO_ROW, np.int64))


def _phases(counts: Indices) -> tuple[Indices, Indices, Indices]:
    """Dilation, piece and phase of each counted phase: int64 [D, n] to [m] each."""
    index, phase = _repeat(counts.ravel())
    kind, piece = np.divmod(index, counts.shape[1])
    return kind, piece, phase


def _repeat(counts: Indices) -> tuple[Indices, Indices]:
    """Every index of a list as often as its count, and for each repetition its number from 0."""
    indices = np.repeat(np.arange(len(counts)), counts)
    return indices, np.arange(len(indices)) - np.repeat(np.cumsum(counts) - counts, counts)


def _cut(values: Indices, counts: Indices) -> list[Indices]:
    """Values, ordered by dilation, cut into those of each dilation. counts: int64 [D, n]."""
    ends = np.cumsum(counts.sum(axis=1)).tolist()
    return [values[first:last] for first, last in pairwise((0, *ends))]
