"""Turns of the callers whose texts wait: who gets how many rows of the next batch."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import accumulate

from app.engine.policy import Budget, Policy
from app.engine.sequence import Sequence


@dataclass(slots=True, eq=False)
class CallerQueue:
    """Waiting sequences of one caller, who may add more. They take turns as one."""

    waiting: deque[Sequence] = field(default_factory=deque)
    rows_given: int = 0


@dataclass(slots=True)
class BatchRows:
    """Rows of a batch while turns fill it. distributions_left: rows that may yet have one."""

    distributions_left: int
    by_sequence: dict[Sequence, int] = field(default_factory=dict)

    def give(self, sequence: Sequence, rows: int) -> None:
        """Adds rows of a sequence."""
        given = self.by_sequence.get(sequence, 0)
        self.by_sequence[sequence] = given + rows
        if sequence.needs_distribution:
            self.distributions_left -= rows
        elif sequence.follow is not None and not given:
            self.distributions_left -= 1

    def room(self, sequence: Sequence, need: int, left: int, halo: int) -> int:
        """Rows that a sequence which needs `need` may have of `left`; 0 to wait for a batch."""
        # a halo for few rows is waste: wait for the next batch, unless this one is empty
        least, room = min(need, max(halo // 2, 1)), min(need, left)
        if sequence.follow is not None or sequence.needs_distribution:
            if self.distributions_left <= 0:
                return 0
            if sequence.needs_distribution:
                least = min(least, self.distributions_left)
                room = min(room, self.distributions_left)
        if room < least:
            return 0 if self.by_sequence else least
        return room


class Turns:
    """Queues of callers, in the order of their turns. halo: R - 1."""

    def __init__(self, halo: int, budget: Budget, workers: int, policy: Policy) -> None:
        self.halo, self.budget, self.workers, self.policy = halo, budget, workers, policy
        self.queues: deque[CallerQueue] = deque()

    def add(self, queue: CallerQueue) -> None:
        """Queues a caller that has waiting sequences."""
        if queue.waiting and queue not in self.queues:
            self.queues.append(queue)

    def forget(self) -> None:
        """Removes sequences that take no more turns, and callers with nothing left."""
        for queue in self.queues:
            while queue.waiting and queue.waiting[0].turns_over:
                queue.waiting.popleft()
        self.queues = deque(queue for queue in self.queues if queue.waiting)

    @property
    def ready(self) -> bool:
        """Whether any sequence may have rows now."""
        return any(sequence.ready for queue in self.queues for sequence in queue.waiting)

    @property
    def scale(self) -> int:
        """By how much batches and turns are larger than ordinary ones."""
        return 2 if len(self.queues) >= self.policy.busy_callers else 1

    def fill(self, left: int, running_rows: int, *, others_waiting: bool) -> BatchRows:
        """Up to `left` rows for new callers, then for those served before, who have a quarter.

        At least one piece, unless few rows are left to a worker that runs. running_rows: rows of
        the running batches. others_waiting: whether others wait for this batch: streams or prompts
        in it, or open streams. Their batches are small, so that nothing is gained by waiting.
        """
        rows = BatchRows(self.budget.stream_tokens)
        new = [queue for queue in self.queues if queue.rows_given < self.policy.new_rows]
        served = [queue for queue in self.queues if queue.rows_given >= self.policy.new_rows]
        if self.budget.shared is not None and not served:
            wait = bool(running_rows) and not others_waiting
            new = self._share(new, left, self.budget.shared, running_rows, wait=wait)
        used = self._go_round(new, left - left // 4 if served else left, rows)
        if served:
            used += self._go_round(served, left - used, rows)
            self._go_round(new, left - used, rows)
        return rows

    def _share(
        self, new: list[CallerQueue], left: int, least: int, running_rows: int, *, wait: bool
    ) -> list[CallerQueue]:
        """The first callers, one worker's share, if a batch of `left` rows could hold all.

        A worker that took all would leave the next worker nothing until these callers have their
        answers and ask again. Fewer rows than `least`, those of the running batches among them, are
        not shared. If they may `wait`, none is returned: the worker that ends next takes them in a
        larger batch, and meanwhile the idle core reads requests.
        """
        sizes: list[int] = []
        for queue in new:
            ready = [sequence for sequence in queue.waiting if sequence.ready]
            sizes.append(sum(s.rows_left + s.halo(self.halo) for s in ready))
            left -= sizes[-1]
            if left < 0:
                return new
            if any(s.needs_distribution for s in ready):
                wait = False  # the next batch has no room for more distributions
        total = sum(sizes)
        if wait and running_rows + total < least:
            return []
        if total < least:
            return new
        before = accumulate(sizes, initial=0)
        return [q for q, rows in zip(new, before, strict=False) if rows * self.workers < total]

    def _go_round(self, queues: list[CallerQueue], left: int, rows: BatchRows) -> int:
        """Gives turns until up to `left` rows are used, always one; returns the rows used."""
        turns, total = deque(queues), 0
        turn_rows = self.policy.turn_rows * self.scale
        while turns and (left > total or not rows.by_sequence):
            queue = turns.popleft()
            used, more = self._turn(queue, min(left - total, turn_rows), rows)
            if used:
                total += used
                if more:
                    turns.append(queue)
                if queue.rows_given >= self.policy.new_rows:
                    self.queues.remove(queue)  # to the end of those that have been served
                    self.queues.append(queue)
                queue.rows_given += used
        return total

    def _turn(self, queue: CallerQueue, left: int, rows: BatchRows) -> tuple[int, bool]:
        """Gives up to `left` rows to a caller's sequences, in order; returns the rows used, and
        whether it could use more."""
        used = 0
        for sequence in queue.waiting:
            given = rows.by_sequence.get(sequence, 0)
            need = sequence.rows_left - given
            if not need or not sequence.ready:
                continue
            halo = 0 if given else sequence.halo(self.halo)
            room = rows.room(sequence, need, left - used - halo, halo)
            if not room:
                return used, True
            rows.give(sequence, room)
            used += room + halo
            if room < need:
                return used, True
        return used, False
