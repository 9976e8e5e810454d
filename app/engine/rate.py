"""How much work an engine does in a second while more waits."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.engine.planner import Step

if TYPE_CHECKING:
    from app.engine.batches import Assignment

_MEAN_SECONDS = 1.0
"""Time over which the rate is a mean: some tens of batches, and soon after a change."""
_FIRST_SECONDS = 0.25
"""Weight of the first rate, which is from a batch or two, as if measured for this long."""
_MOST_SECONDS = 0.5
"""Most weight of one batch: one that hangs for seconds says little about the next."""
_LEAST_PER_SECOND = 1.0
"""Below it, times to wait would have no meaning."""


@dataclass(frozen=True, slots=True)
class BatchWork:
    """A batch's part in the rate.

    rows: of texts and prompts, as `work_of` counts them. full: whether more work waited than it
    had room for. began: when the worker was ready for it, so that planning counts.
    """

    rows: int
    full: bool
    began: float = field(default_factory=time.perf_counter)


class Rate:
    """Work done in a second while more than a batch of it waits, as a mean over about a second.

    It is that of full batches, one on each of the `workers`: batches of few rows would understate
    it. Whatever else takes their time (streams, halos, other processes) makes it lower. first: its
    value until then; infinite if nothing is known.
    """

    def __init__(self, first: float = math.inf, workers: int = 1) -> None:
        self.per_second = first
        self.workers = workers
        self._seconds = _FIRST_SECONDS if math.isfinite(first) else 0.0
        self._work = first * _FIRST_SECONDS if self._seconds else 0.0

    def count(self, batch: BatchWork, now: float) -> None:
        """Counts a batch that has ended by the time `now`, in seconds.

        One that was not full proves that the engine does as much, not that it does no more. So it
        only raises a rate that is far too low, with which too little would be admitted to fill a
        batch. Half of what it shows, since alone a batch may be faster than beside another.
        """
        seconds = now - batch.began
        if seconds <= 0.0:
            return
        per_second = batch.rows / seconds * (self.workers if batch.full else 0.5)
        if not batch.full and not self.per_second < per_second < math.inf:
            return
        weight = min(seconds, _MOST_SECONDS) / (self.workers if batch.full else 1)
        kept = math.exp(-weight / _MEAN_SECONDS)
        self._seconds = self._seconds * kept + weight
        self._work = self._work * kept + per_second * weight
        self.per_second = max(_LEAST_PER_SECOND, self._work / self._seconds)


def work_of(picked: list[Assignment]) -> int:
    """The work of a batch that has been picked, which its sequences' `rows_due` lose by it: rows
    that are not generated, and the halo before the first of a sequence."""
    work = 0
    for assignment in picked:
        piece, sequence = assignment.piece, assignment.sequence
        if isinstance(piece, Step):
            continue
        start = piece.position + piece.halo
        if start >= len(sequence.tokens):  # a stream that had lost its state
            continue
        work += piece.rows - piece.halo
        if start == sequence.first_row and sequence.parent is None:
            work += piece.halo
    return work
