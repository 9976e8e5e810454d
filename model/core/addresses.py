"""Where the rows of a batch find the frames before them, in the batch or in states.

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

_NOWHERE = read_only(np.array([SCRATCH_SLOT]))
NONE = -1
"""Instead of a slot: zero rows lie before a piece that reads none."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """Pieces that follow each other in a batch, int64 [n] each.

    lengths: their rows. positions: of their first rows in their texts. reads, writes: the slots of
    the states before and after them, or NONE.
    """

    lengths: Indices
    positions: Indices
    reads: Indices
    writes: Indices

    @classmethod
    def one(cls, length: int, position: int, read: int, write: int) -> Self:
        """A piece alone."""
        return cls(*(np.array([number]) for number in (length, position, read, write)))


def addresses(pieces: Pieces, taps: Taps, dummies: int = 0) -> tuple[Addresses, ...]:
    """Those of each dilation. dummies: rows behind all pieces, of zero rows.

    All dilations go through each step together: for the few pieces of an ordinary batch a step
    takes as long for all as for one.
    """
    laid = _Layout.of(pieces, dummies)
    columns = _Columns.of(taps)
    rows = np.arange(len(laid.places))[:, None]
    tables = np.zeros((laid.rows, len(columns.back)), np.int64)
    inside = laid.places[:, None] >= columns.back
    np.copyto(tables[: len(rows)], frame_row(rows - columns.back), where=inside)
    if laid.stateless:
        tables_of_each = zip(taps, columns.cut(tables), strict=True)
        return tuple(_stateless(dilation, table) for (dilation, _), table in tables_of_each)
    states = _States.of(laid, columns.dilations)
    _fill_in(tables, laid, columns, states)
    found = zip(
        taps,
        columns.cut(tables),
        states.slots(pieces.reads, states.read),
        states.slots(pieces.writes, states.written),
        states.carry(columns.most),
        strict=True,
    )
    return tuple(
        Addresses(dilation, table, reads, writes, np.ascontiguousarray(carry[:, : count - 1]))
        for (dilation, count), table, reads, writes, carry in found
    )


@dataclass(frozen=True, slots=True)
class _Layout:
    """Pieces and where they lie. begins: int64 [n], of their first rows. owners, places: int64 [N],
    of each row its piece and its number there. rows: with the dummies. stateless: no piece reads
    or writes a state."""

    pieces: Pieces
    begins: Indices
    owners: Indices
    places: Indices
    rows: int
    stateless: bool

    @classmethod
    def of(cls, pieces: Pieces, dummies: int) -> Self:
        begins = np.cumsum(pieces.lengths) - pieces.lengths
        owners = np.repeat(np.arange(len(begins)), pieces.lengths)
        places = np.arange(len(owners)) - begins[owners]
        stateless = not ((pieces.reads >= 0).any() or (pieces.writes >= 0).any())
        return cls(pieces, begins, owners, places, len(owners) + dummies, stateless)


@dataclass(frozen=True, slots=True)
class _Columns:
    """The columns of the taps of all D dilations, C side by side.

    dilations: int64 [D]. kinds, steps, numbers, back: int64 [C], of each column the number of its
    dilation, the dilation, its own number in that table, and the rows from a token back to its tap.
    most: the columns of the widest table.
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
        kinds, numbers = _numbered(widths)
        ends = tuple(np.cumsum(widths).tolist())
        steps = dilations[kinds]
        return cls(dilations, kinds, steps, numbers, numbers * steps, ends, int(widths.max()))

    def cut(self, tables: Indices) -> list[Indices]:
        """int64 [rows, C] to the table of each dilation."""
        bounds = pairwise((0, *self.ends))
        return [np.ascontiguousarray(tables[:, first:last]) for first, last in bounds]


@dataclass(frozen=True, slots=True)
class _States:
    """The states that pieces read and write: of D dilations, a state for each phase.

    read, written: int64 [D, n], how many phases of each piece. first: int64 [D, n], the number of
    a piece's first state among those that are read. counts: int64 [D], of them all.
    """

    laid: _Layout
    dilations: Indices
    read: Indices
    written: Indices
    first: Indices
    counts: Indices

    @classmethod
    def of(cls, laid: _Layout, dilations: Indices) -> Self:
        reads, writes = laid.pieces.reads, laid.pieces.writes
        all_phases = dilations[:, None]
        touched = np.minimum(laid.pieces.lengths, all_phases)  # phases that have rows
        # a state that goes to another slot goes there whole; one that stays keeps what has no rows
        stays = reads == writes
        read = np.where(reads < 0, 0, np.where(stays | (writes < 0), touched, all_phases))
        written = np.where(writes < 0, 0, np.where(stays, touched, all_phases))
        sums = np.cumsum(read, axis=1)
        return cls(laid, dilations, read, written, sums - read, sums[:, -1])

    def before(self, kind: Indices, piece: Indices, phase: Indices, age: Indices) -> Indices:
        """Addresses of frames of an age of the states of pieces and phases, zero rows where none
        is read, by the rules of NumPy's broadcasting. kind: the number of the dilation."""
        state = self.first[kind, piece] + phase
        found = state_row(self.laid.rows, self.counts[kind], state, age)
        return np.where(self.laid.pieces.reads[piece] >= 0, found, ZERO_ROW)

    def slots(self, slots: Indices, counts: Indices) -> list[Indices]:
        """Rows of the pools of each dilation: those of phases of the pieces' slots, as many of each
        as counted, [D, n]; a dummy if there are none."""
        if not counts.any():
            return [np.array([SCRATCH_SLOT])] * len(self.dilations)
        kind, piece, phase = _phases(counts)
        dilation = self.dilations[kind]
        rows = slots[piece] * dilation + (self.laid.pieces.positions[piece] + phase) % dilation
        return _cut(rows, counts)

    def carry(self, columns: int) -> list[Indices]:
        """Where the frames of the states to write are found: int64 [W, columns - 1] for each
        dilation, which needs the first of them."""
        if not self.written.any():
            return [np.full((1, columns - 1), ZERO_ROW, np.int64)] * len(self.dilations)
        kind, piece, phase = _phases(self.written)
        dilation = self.dilations[kind]
        # rows of the phase
        count = (self.laid.pieces.lengths[piece] - phase + dilation - 1) // dilation
        number = count[:, None] - 1 - np.arange(columns - 1)  # from the newest
        row = (self.laid.begins[piece] + phase)[:, None] + number * dilation[:, None]
        older = self.before(kind[:, None], piece[:, None], phase[:, None], -number)
        return _cut(np.where(number >= 0, frame_row(row), older), self.written)


def _fill_in(tables: Indices, laid: _Layout, columns: _Columns, states: _States) -> None:
    """Writes the taps that leave their pieces: frames of the states in front."""
    reads = laid.pieces.reads[laid.owners] >= 0
    leaving = np.flatnonzero(reads & (laid.places < columns.back.max()))
    number, phase = np.divmod(laid.places[leaving, None], columns.steps)  # of the row in its phase
    age = columns.numbers - number
    carried = states.before(columns.kinds, laid.owners[leaving, None], phase, age)
    tables[leaving] = np.where(age <= 0, tables[leaving], carried)


def _stateless(dilation: int, table: Indices) -> Addresses:
    return Addresses(dilation, table, _NOWHERE, _NOWHERE, _carry_of_none(table.shape[1] - 1))


@lru_cache(maxsize=16)
def _carry_of_none(ages: int) -> Indices:
    """A dummy that is the same array for all batches, as `_NOWHERE`: such a one is bound once."""
    return read_only(np.full((1, ages), ZERO_ROW, np.int64))


def _phases(counts: Indices) -> tuple[Indices, Indices, Indices]:
    """Dilation, piece and phase of each that is counted: int64 [D, n] to [m] each."""
    place, phase = _numbered(counts.ravel())
    kind, piece = np.divmod(place, counts.shape[1])
    return kind, piece, phase


def _numbered(counts: Indices) -> tuple[Indices, Indices]:
    """The places of a list, each as often as counted there, and the numbers from 0 of each."""
    places = np.repeat(np.arange(len(counts)), counts)
    return places, np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)


def _cut(values: Indices, counts: Indices) -> list[Indices]:
    """What belongs to each dilation, of values in its order. counts: int64 [D, n]."""
    ends = np.cumsum(counts.sum(axis=1)).tolist()
    return [values[first:last] for first, last in pairwise((0, *ends))]
