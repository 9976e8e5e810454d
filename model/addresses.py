"""Where the rows of a batch find the frames before them, in the batch or in states.

Legend: see `model.graph`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from model.config import Taps
from model.graph import SCRATCH_SLOT, ZERO_ROW, Addresses, Indices, frame_row, state_row

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
    """Those of each dilation. dummies: rows behind all pieces, of zero rows."""
    laid = _Layout.of(pieces, dummies)
    back = np.concatenate([np.arange(columns) * dilation for dilation, columns in taps])
    rows = np.arange(len(laid.places))[:, None]
    tables = np.zeros((len(rows) + dummies, len(back)), np.int64)
    np.copyto(tables[: len(rows)], frame_row(rows - back), where=laid.places[:, None] >= back)
    ends = np.cumsum([columns for _, columns in taps]).tolist()
    of_each = zip(taps, ends, strict=True)
    own = [(d, np.ascontiguousarray(tables[:, end - k : end])) for (d, k), end in of_each]
    if laid.stateless:
        return tuple(_stateless(*each) for each in own)
    return tuple(_of(laid, *each) for each in own)


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


def _stateless(dilation: int, table: Indices) -> Addresses:
    nowhere = np.array([SCRATCH_SLOT])
    carry = np.full((1, table.shape[1] - 1), ZERO_ROW, np.int64)
    return Addresses(dilation, table, nowhere, nowhere, carry)


def _of(laid: _Layout, dilation: int, table: Indices) -> Addresses:
    """table: the taps, int64 [rows, k], with zero rows before every piece; changed."""
    pieces, taps = laid.pieces, table.shape[1]
    lengths, reads, writes = pieces.lengths, pieces.reads, pieces.writes
    touched = np.minimum(lengths, dilation)  # phases that have rows
    # a state that goes to another slot goes there whole; one that stays keeps what has no rows
    stays = reads == writes
    read = np.where(reads < 0, 0, np.where(stays | (writes < 0), touched, dilation))
    written = np.where(writes < 0, 0, np.where(stays, touched, dilation))
    first = np.cumsum(read) - read  # number of a piece's first state
    states = int(read.sum())

    def before(piece: Indices, phase: Indices, age: Indices) -> Indices:
        """Addresses of frames of an age, [m, j], of the states of pieces and phases, [m]."""
        found = state_row(laid.rows, states, (first[piece] + phase)[:, None], age)
        return np.where(reads[piece, None] >= 0, found, ZERO_ROW)

    if states:
        leaving = np.flatnonzero(laid.places < (taps - 1) * dilation)  # rows some of whose taps do
        place, owner = laid.places[leaving], laid.owners[leaving]
        age = np.arange(taps) - (place // dilation)[:, None]
        carried = before(owner, place % dilation, age)
        table[leaving] = np.where(age <= 0, table[leaving], carried)

    carry = np.full((1, taps - 1), ZERO_ROW, np.int64)
    if written.any():
        piece, phase = _phases(written)
        count = (lengths[piece] - phase + dilation - 1) // dilation  # rows of the phase
        number = np.maximum(count, 0)[:, None] - 1 - np.arange(taps - 1)  # from the newest
        row = (laid.begins[piece] + phase)[:, None] + number * dilation
        carry = np.where(number >= 0, frame_row(row), before(piece, phase, -number))
    return Addresses(
        dilation,
        taps=table,
        read_slots=_slots(reads, pieces.positions, read, dilation),
        write_slots=_slots(writes, pieces.positions, written, dilation),
        carry=carry,
    )


def _phases(counts: Indices) -> tuple[Indices, Indices]:
    """The pieces, each as often as counted, and the numbers from 0 of each."""
    pieces = np.repeat(np.arange(len(counts)), counts)
    return pieces, np.arange(len(pieces)) - np.repeat(np.cumsum(counts) - counts, counts)


def _slots(slots: Indices, positions: Indices, counts: Indices, dilation: int) -> Indices:
    """Rows of a pool: those of the phases of the pieces' slots; a dummy if there are none."""
    if not counts.any():
        return np.array([SCRATCH_SLOT])
    piece, phase = _phases(counts)
    return slots[piece] * dilation + (positions[piece] + phase) % dilation
