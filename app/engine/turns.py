"""Turns of the callers whose texts wait: who gets how many rows of the next batch."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from itertools import accumulate, chain

from app.engine.policy import Budget, Policy
from app.engine.sequence import Sequence


@dataclass(slots=True, eq=False)
class CallerQueue:
    """Waiting sequences of one caller, who may add more. They take turns as one.

    bulk: whether others' work goes first. patient: whether it waits however long, instead of being
    dropped when it has had no row in time.
    """

    bulk: bool = False
    patient: bool = False
    waiting: deque[Sequence] = field(default_factory=deque)
    since: float = math.inf
    """When its first sequence was submitted: by `time.monotonic`, infinite before."""
    rows_given: int = 0
    begun: bool = False
    """Whether any of its sequences has had a row."""
    states: int = 0
    """Slots that its streams hold."""
    prompts: deque[Sequence] = field(default_factory=deque)
    """Prompts that wait for a row and a slot (`Prompts`)."""
    prompt_rows: int = 0
    """Their rows due."""
    turns: deque[CallerQueue] | None = field(default=None, repr=False)
    """The list of `Turns` that it is in."""
    outstanding: int = 0
    """Rows due of its unfinished sequences; guarded by the loop's lock."""


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
    """Queues of callers, in the order of their turns. halo: R - 1.

    There are three lists: new callers, callers that have had many rows, and bulk. A batch visits
    only the callers for which it has rows, since a full queue has tens of thousands.
    """

    def __init__(self, halo: int, budget: Budget, workers: int, policy: Policy) -> None:
        self.halo, self.budget, self.workers, self.policy = halo, budget, workers, policy
        self.new: deque[CallerQueue] = deque()
        self.served: deque[CallerQueue] = deque()
        self.bulk: deque[CallerQueue] = deque()
        self._visited: dict[CallerQueue, None] = {}
        self.divided = False
        """Whether the last batch left callers to the next worker that would have fitted."""
        self._bulk_passed = 0
        """Batches since bulk that waits has had rows."""

    def add(self, queue: CallerQueue) -> None:
        """Queues a caller that has waiting sequences."""
        if queue.waiting and queue.turns is None:
            self._append(queue)

    def forget(self) -> None:
        """Of the callers that the last batch visited, removes sequences that take no more turns,
        and callers with nothing left."""
        for queue in self._visited:
            while queue.waiting and queue.waiting[0].turns_over:
                queue.waiting.popleft()
            if not queue.waiting and queue.turns is not None:
                queue.turns.remove(queue)  # near the front, or at the end
                queue.turns = None
        self._visited.clear()

    @property
    def interactive(self) -> bool:
        """Whether work that is no bulk waits, or runs and is not at its end."""
        return bool(self.new or self.served)

    @property
    def waiting(self) -> bool:
        """Whether any work waits, or runs and is not at its end."""
        return bool(self.new or self.served or self.bulk)

    @property
    def ready(self) -> bool:
        """Whether any sequence may have rows now."""
        queues = chain(self.new, self.served, self.bulk)
        return any(sequence.ready for queue in queues for sequence in queue.waiting)

    @property
    def scale(self) -> int:
        """By how much batches and turns are larger than ordinary ones."""
        callers = len(self.new) + len(self.served) + len(self.bulk)
        return 2 if callers >= self.policy.busy_callers else 1

    def fill(self, left: int, running_rows: int, *, others_waiting: bool) -> BatchRows:
        """Up to `left` rows for new callers, for those served before, and for bulk; each leaves a
        quarter to those after it.

        At least one piece, unless few rows are left to a worker that runs. running_rows: rows of
        the running batches. others_waiting: whether others wait for this batch: streams or prompts
        in it, or open streams. Their batches are small, so that nothing is gained by waiting.
        """
        rows = BatchRows(self.budget.stream_tokens)
        lists = [queues for queues in (self.new, self.served, self.bulk) if queues]
        bulk_rows = 0
        if self._bulk_passed >= self.policy.bulk_batches and self.bulk:
            left -= (bulk_rows := self._go_round(self.bulk, left // 4, rows))
        most = None
        alone = len(lists) == 1 and lists[0] is not self.served
        if alone and self.budget.shared is not None:
            wait = bool(running_rows) and not others_waiting
            most = self._share(lists[0], left, self.budget.shared, running_rows, wait=wait)
        self.divided = most is not None
        for number, queues in enumerate(lists, 1):
            share = left - left // 4 if number < len(lists) else left
            used = self._go_round(queues, share, rows, most)
            bulk_rows += used if queues is self.bulk else 0
            left -= used
        for queues in lists[:-1]:
            left -= self._go_round(queues, left, rows)
        self._bulk_passed = 0 if bulk_rows or not self.bulk else self._bulk_passed + 1
        return rows

    def _append(self, queue: CallerQueue) -> None:
        """Puts a caller at the end of the list where it belongs now."""
        queue.turns = self.new if queue.rows_given < self.policy.new_rows else self.served
        if queue.bulk:
            queue.turns = self.bulk
        queue.turns.append(queue)

    def _share(
        self, queues: deque[CallerQueue], left: int, least: int, running_rows: int, *, wait: bool
    ) -> int | None:
        """How many of the first callers are one worker's share, if a batch of `left` rows could
        hold all and none has been served before. None for as many as fit.

        A worker that took all would leave the next worker nothing until these callers have their
        answers and ask again. Fewer rows than `least`, those of the running batches among them, are
        not shared. If they may `wait`, it is 0: the worker that ends next takes them in a
        larger batch, and meanwhile the idle core reads requests.
        """
        sizes: list[int] = []
        for queue in queues:
            ready = [sequence for sequence in queue.waiting if sequence.ready]
            sizes.append(sum(s.rows_left + s.halo(self.halo) for s in ready))
            left -= sizes[-1]
            if left < 0 or queue.rows_given >= self.policy.new_rows:
                return None
            if any(s.needs_distribution for s in ready):
                wait = False  # the next batch has no room for more distributions
        total = sum(sizes)
        if wait and running_rows + total < least:
            return 0
        if total < least:
            return None
        return sum(before * self.workers < total for before in accumulate(sizes[:-1], initial=0))

    def _go_round(
        self, queues: deque[CallerQueue], left: int, rows: BatchRows, most: int | None = None
    ) -> int:
        """Gives turns to the first callers, or to as many as needed, until up to `left` rows are
        used, always one; returns the rows used."""
        first_turns = len(queues) if most is None else most
        visited: dict[CallerQueue, bool] = {}
        again: deque[CallerQueue] = deque()
        total, turn_rows = 0, self.policy.turn_rows * self.scale
        passed = 0
        while not rows.by_sequence or (left > total and passed < self.policy.passed_callers):
            if first_turns:
                first_turns -= 1
                queue = queues.popleft()
            elif again:
                queue = again.popleft()
            else:
                break
            used, more = self._turn(queue, min(left - total, turn_rows), rows)
            total += used
            passed = 0 if used else passed + 1
            queue.rows_given += used
            served = queue.rows_given >= self.policy.new_rows
            visited[queue] = visited.get(queue, False) or (served and bool(used))
            if used and more:
                again.append(queue)
        # served callers go to the end of their list; others keep their position
        queues.extendleft(reversed([queue for queue, moves in visited.items() if not moves]))
        for queue, moves in visited.items():
            if moves:
                self._append(queue)
        self._visited |= dict.fromkeys(visited)
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
