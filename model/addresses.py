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
    begins = np.cumsum(pieces.lengths) - pieces.lengths
    owners = np.repeat(np.arange(len(begins)), pieces.lengths)
    places = np.arange(len(owners)) - begins[owners]  # of the rows in their pieces
    return tuple(_of(pieces, begins, owners, places, *each, dummies) for each in taps)


def _of(
    pieces: Pieces,
    begins: Indices,
    owners: Indices,
    places: Indices,
    dilation: int,
    taps: int,
    dummies: int,
) -> Addresses:
    lengths, reads, writes = pieces.lengths, pieces.reads, pieces.writes
    rows = len(owners) + dummies
    touched = np.minimum(lengths, dilation)  # phases that have rows
    # a state that goes to another slot goes there whole; one that stays keeps what has no rows
    stays = reads == writes
    read = np.where(reads < 0, 0, np.where(stays | (writes < 0), touched, dilation))
    written = np.where(writes < 0, 0, np.where(stays, touched, dilation))
    first = np.cumsum(read) - read  # number of a piece's first state
    states = int(read.sum())

    def before(piece: Indices, phase: Indices, age: Indices) -> Indices | int:
        """Addresses of frames of an age, [m, j], of the states of pieces and phases, [m]."""
        if not states:
            return ZERO_ROW
        found = state_row(rows, states, (first[piece] + phase)[:, None], age)
        return np.where(reads[piece, None] >= 0, found, ZERO_ROW)

    back = np.arange(taps)
    table = frame_row(np.arange(rows)[:, None] - back * dilation)
    leaving = np.flatnonzero(places < (taps - 1) * dilation)  # rows some of whose taps leave it
    place = places[leaving]
    age = back - (place // dilation)[:, None]
    carried = before(owners[leaving], place % dilation, age)
    table[leaving] = np.where(age <= 0, table[leaving], carried)
    table[rows - dummies :] = ZERO_ROW

    carry = np.full((1, taps - 1), ZERO_ROW, np.int64)
    if written.any():
        piece, phase = _phases(written)
        count = (lengths[piece] - phase + dilation - 1) // dilation  # rows of the phase
        number = np.maximum(count, 0)[:, None] - 1 - np.arange(taps - 1)  # from the newest
        row = (begins[piece] + phase)[:, None] + number * dilation
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
