"""Failed batches run again in halves, until the sequence at fault is alone; and batches that fit.

A sequence that is to be run again stays `running`, so that nothing else gives it rows. The state
that a failed batch read or wrote is never read: the rows before are computed again as a halo.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.engine.batches import Assignment
    from app.engine.policy import Policy
    from app.engine.sequence import Sequence

_log = logging.getLogger(__name__)


def divisible(failed: list[Assignment], *, memory: bool) -> bool:
    """Whether parts of a failed batch may succeed: of one piece only if it lacked `memory`."""
    return len(failed) > 1 or (memory and failed[0].piece.rows - failed[0].piece.halo > 1)


@dataclass(slots=True)
class _Goal:
    """Where a sequence was to be after the batch that failed.

    until: the row after the last. most: rows that a piece has at most.
    """

    until: int
    most: int


class Retries:
    """Groups of sequences that failed together; each group is a batch without others.

    halo: R - 1. take: gives a sequence rows. end: ends a sequence that was cancelled.
    """

    def __init__(
        self,
        halo: int,
        take: Callable[[Sequence, int], Assignment],
        end: Callable[[Sequence], None],
    ) -> None:
        self._halo, self._take, self._end = halo, take, end
        self._groups: deque[deque[Sequence]] = deque()
        self._goals: dict[Sequence, _Goal] = {}
        """Of all sequences in groups, and of those of a group that runs."""
        self._due = False

    @property
    def waiting(self) -> bool:
        """Whether a group waits to be run."""
        return bool(self._groups)

    def due(self) -> bool:
        """Whether a group goes before other work: every second time."""
        self._due = bool(self._groups) and not self._due
        return self._due

    def add(self, failed: list[Assignment], *, memory: bool) -> None:
        """Adds the sequences of a failed batch, which are as they were before it, as two groups.

        memory: whether it lacked memory, so that a piece that was alone has half the rows.
        """
        for each in failed:
            sequence, goal = each.sequence, self._goals.get(each.sequence)
            rows = each.piece.rows - each.piece.halo
            most = rows // 2 if memory and len(failed) == 1 else rows
            until = sequence.computed + rows
            if goal is not None:
                until, most = max(until, goal.until), min(most, goal.most)
            self._goals[sequence] = _Goal(until, most)
        half = -(-len(failed) // 2)
        for some in (failed[:half], failed[half:]):
            if some:
                self._groups.append(deque(each.sequence for each in some))

    def pick(self, most_rows: int) -> list[Assignment]:
        """The pieces of the next group that are to be run, at least one, and up to `most_rows`."""
        picked: list[Assignment] = []
        while self._groups and not picked:
            group, left = self._groups[0], most_rows
            while group and (not picked or left > 0):
                sequence = group[0]
                goal = self._goals[sequence]
                need = min(goal.until - sequence.computed, goal.most)
                halo = sequence.halo(self._halo)
                if picked and halo + need > left and not sequence.closed:
                    break
                group.popleft()
                if sequence.closed:
                    self._leave(sequence)
                else:
                    picked.append(self._take(sequence, min(need, max(1, left - halo))))
                    left -= picked[-1].piece.rows
            if not group:
                self._groups.popleft()
        return picked

    def finish(self, picked: list[Assignment]) -> None:
        """Notes that a batch has succeeded; what it left of a group's sequences waits on."""
        rest: deque[Sequence] = deque()
        for each in picked:
            sequence = each.sequence
            goal = self._goals.get(sequence)
            if goal is None:
                return  # no group's batch
            if sequence.closed or sequence.computed >= goal.until:
                del self._goals[sequence]
            else:
                sequence.running = True
                rest.append(sequence)
        if rest:
            self._groups.append(rest)

    def forget(self, sequence: Sequence) -> None:
        """Runs a sequence that has failed no more."""
        self._goals.pop(sequence, None)

    def _leave(self, sequence: Sequence) -> None:
        self.forget(sequence)
        sequence.running = False
        self._end(sequence)

    @property
    def any(self) -> bool:
        """Whether a sequence waits to be run again, or runs again."""
        return bool(self._goals)


class MemoryLimit:
    """Rows that fit into the memory of the device: fewer after a batch that lacked memory.

    They grow again, since other programs may have taken the memory for a time; a batch that fails
    meanwhile is run again in halves, which costs time and no result.
    """

    def __init__(self, most: int, policy: Policy) -> None:
        self._most, self._policy = most, policy
        self._good = 0
        self.rows = most
        """A batch's rows, an aim as `Budget` has it."""

    @property
    def limited(self) -> bool:
        """Whether a batch has lacked memory lately."""
        return self.rows < self._most

    def shrink(self, rows: int) -> None:
        """Halves the rows after a batch of so many lacked memory."""
        before, least = self.rows, min(self._policy.memory_rows, self.rows)
        self._good, self.rows = 0, max(least, min(self.rows, rows) // 2)
        if self.rows < before:
            _log.warning(
                "engine batch lacked memory rows=%d: batches have up to %d now", rows, self.rows
            )

    def grow_after(self, rows: int) -> None:
        """Doubles the rows after enough batches near the limit have succeeded."""
        if 2 * rows < self.rows:
            return
        self._good += 1
        if self._good >= self._policy.memory_batches:
            self._good, self.rows = 0, min(self._most, 2 * self.rows)
            _log.info("engine batches have up to %d rows again", self.rows)
