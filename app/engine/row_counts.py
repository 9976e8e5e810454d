"""Rows that have been picked, by kind."""

from __future__ import annotations

from dataclasses import dataclass

from app.engine.sequence import Generation, Sequence


@dataclass(slots=True)
class RowCounts:
    """Rows by kind. A halo row is computed again only for the rows after it. A dummy row fills a
    batch up to the number that its products need."""

    score: int = 0
    prefill: int = 0
    decode: int = 0
    halo: int = 0
    dummy: int = 0

    def add(self, sequence: Sequence, halo: int, rows: int) -> None:
        """Counts a piece of a sequence: a halo, and rows of its own."""
        if not isinstance(sequence.follow, Generation):
            self.score += rows
            self.halo += halo
        elif sequence.streaming:
            self.decode += rows
            self.halo += halo
        else:
            self.prefill += rows + halo
