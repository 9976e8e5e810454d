"""Which rows run next, and which sequences end with them. Synchronous, without threads and ONNX.

There is no prefill phase and no decode phase: a sequence has known tokens and computed rows, and
each step gives some sequences rows to catch up. Streams (one row each, latency matters) come
first, then short prompts, then everything else in fair turns; each kind has a reserved share of the
batch, so that none starves another. Of each kind bulk comes last, with a share of its own.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from itertools import chain

from app.engine.batches import Assignment
from app.engine.patience import Unserved
from app.engine.planner import Piece, Step
from app.engine.policy import POLICY, Budget, Policy
from app.engine.prompts import Prompts
from app.engine.retry import MemoryLimit, Retries, divisible
from app.engine.row_counts import RowCounts
from app.engine.sequence import Generation, Sequence
from app.engine.states import States
from app.engine.turns import CallerQueue, Turns


class Scheduler:
    """Streams, prompts and callers' texts that wait for rows.

    Several batches may run at a time, one for each of the `workers`; a sequence is in at most one
    of them. receptive_field: R; a piece without a state is preceded by R - 1 rows of halo. slots:
    states that the pool holds besides the scratch slot. max_queue_seconds: how long a caller may
    wait for its first row.
    """

    def __init__(
        self,
        receptive_field: int,
        budget: Budget,
        slots: int,
        workers: int = 1,
        policy: Policy = POLICY,
        max_queue_seconds: float = math.inf,
    ) -> None:
        self.halo = receptive_field - 1
        self.budget, self.workers, self.policy = budget, workers, policy
        self.states = States(slots)
        self.streams: deque[Sequence] = deque()
        self.bulk_streams: deque[Sequence] = deque()
        self.prompts = Prompts(self.halo, self.states)
        self.bulk_prompts = Prompts(self.halo, self.states)
        self.turns = Turns(self.halo, budget, workers, policy)
        self.retries = Retries(self.halo, self._take, self.states.end)
        self.memory = MemoryLimit(2 * budget.tokens, policy)
        self.counts = RowCounts()
        self.running_rows = 0
        """Rows of the running batches."""
        self.unserved = Unserved(max_queue_seconds)
        self._bulk_passed = 0
        """Batches since a bulk prompt has been picked."""

    def add(self, queue: CallerQueue, sequences: Iterable[Sequence]) -> None:
        """Accepts sequences of a caller."""
        added = list(sequences)
        self.unserved.add(queue)
        prompts = {s.parent for s in added if isinstance(s.follow, Generation)}
        for sequence in added:
            sequence.caller = queue
            if sequence.parent is not None:
                sequence.parent.children += 1
            prompt = isinstance(sequence.follow, Generation) or sequence in prompts
            if prompt and sequence.rows_left == 1:
                self._prompts_of(sequence).add(queue, sequence)
            else:
                queue.waiting.append(sequence)
        self.turns.add(queue)

    def cancel(self, sequence: Sequence) -> None:
        """Cancels a sequence; its queued rows are skipped later."""
        if not sequence.closed:
            sequence.closed = True
            self._prompts_of(sequence).changed(sequence)
            if not sequence.running:
                self.states.end(sequence)

    def expire(self) -> list[Sequence]:
        """Cancels the work of callers that have had no row in time; returns it."""
        queues = self.unserved.expired()
        waiting = chain.from_iterable(chain(queue.waiting, queue.prompts) for queue in queues)
        expired = [sequence for sequence in waiting if not sequence.closed]
        for sequence in expired:
            self.cancel(sequence)
        return expired

    @property
    def idle(self) -> bool:
        """Whether nothing waits for rows."""
        streams, prompts = self.streams or self.bulk_streams, self.prompts or self.bulk_prompts
        return not (streams or prompts or self.turns.waiting or self.retries.any)

    @property
    def ready(self) -> bool:
        """Whether something may have rows that no running batch holds."""
        new = self._stream_ready or self._prompt_ready or self.turns.ready
        return new or self.retries.waiting

    @property
    def full(self) -> bool:
        """Whether the last batch that was picked had no room for texts or prompts that are left."""
        if self.turns.divided or self.retries.any:  # what is left would have fitted
            return False
        return self._prompt_ready or self.turns.ready

    @property
    def _prompt_ready(self) -> bool:
        return any(self.prompts.ready()) or any(self.bulk_prompts.ready())

    def _prompts_of(self, sequence: Sequence) -> Prompts:
        bulk = sequence.caller is not None and sequence.caller.bulk
        return self.bulk_prompts if bulk else self.prompts

    @property
    def _stream_ready(self) -> bool:
        streams = chain(self.streams, self.bulk_streams)
        return any(not (s.running or s.stalled) for s in streams)

    def pick(self) -> list[Assignment]:
        """The pieces of the next batch. Empty if nothing waits, if running batches already hold all
        of it, or if too few rows wait to be worth a batch."""
        if not self.retries.waiting:
            return self._pick_new()
        first, second = self._pick_new, self._pick_again
        if self.retries.due():
            first, second = second, first
        return first() or second()

    def _pick_again(self) -> list[Assignment]:
        """A group that failed together, without others."""
        picked = self.retries.pick(min(self.budget.tokens, self.memory.rows))
        self.running_rows += sum(p.piece.rows for p in picked)
        return picked

    def _pick_new(self) -> list[Assignment]:
        """As `pick`, of what has not failed."""
        # 1. The size of the batch, without cancelled sequences.
        self.streams = deque(s for s in self.streams if not s.closed)
        self.bulk_streams = deque(s for s in self.bulk_streams if not s.closed)
        self.prompts.forget()
        self.bulk_prompts.forget()
        left = self._size()
        # 2. Streams, a row each. They leave a quarter of the batch if anything else waits, and of
        # that bulk leaves three quarters to what is interactive.
        interactive = any(self.prompts.ready()) or self.turns.interactive
        others = self._prompt_ready or self.turns.ready
        picked: list[Assignment] = []
        if self.streams:
            share = left - left // 4 if others or self.bulk_streams else left
            left -= self._pick_streams(self.streams, share, picked)
        if self.bulk_streams:
            share = left - left // 4 if others else left
            share = max(1, left // 4) if interactive else share
            left -= self._pick_streams(self.bulk_streams, share, picked)
        # 3. Short prompts. They leave half of the rest if callers' texts wait.
        share = left - left // 2 if self.turns.waiting else left
        if self.prompts:
            left -= self._pick_prompts(self.prompts, share, picked)
        if self.bulk_prompts:
            due = not picked or self._bulk_passed >= self.policy.bulk_batches
            share = left // 4 if interactive else share
            used = self._pick_prompts(self.bulk_prompts, share, picked, due=due)
            self._bulk_passed = 0 if used else self._bulk_passed + 1
            left -= used
        # 4. Texts, in the turns of their callers.
        open_streams = bool(picked or self.streams or self.bulk_streams)
        picked += self._pick_texts(left, others_waiting=open_streams)
        self.running_rows += sum(p.piece.rows for p in picked)
        return picked

    def finish(self, picked: list[Assignment]) -> list[Sequence]:
        """Ends the run of a batch whose `results` have been read; returns complete sequences."""
        complete = []
        for assignment in picked:
            sequence = assignment.sequence
            self._end_run(assignment)
            if not sequence.closed and sequence.computed == sequence.rows:
                sequence.closed = True
                complete.append(sequence)
            if sequence.closed:
                self.states.end(sequence)
        if self.memory.limited:
            self.memory.grow_after(sum(a.piece.rows for a in picked))
        if self.retries.any:
            self.retries.finish(picked)
        return complete

    def retry(self, picked: list[Assignment], *, memory: bool) -> list[Sequence]:
        """Has a batch that failed run again in halves, its sequences as they were before it.

        Closes and returns the open sequences that are not run again: one that failed alone. memory:
        whether the batch lacked memory, in which case one of several rows is run in halves too.
        """
        if memory:
            self.memory.shrink(sum(a.piece.rows for a in picked))
        if not divisible(picked, memory=memory):
            return self.drop(picked)
        again: list[Assignment] = []
        for assignment in picked:
            sequence, piece = assignment.sequence, assignment.piece
            self._end_run(assignment)
            if sequence.closed:
                self.retries.forget(sequence)
                self.states.end(sequence)
                continue
            sequence.rewind(piece.position + piece.halo)
            sequence.running = True
            again.append(assignment)
        self.retries.add(again, memory=memory)
        return []

    def drop(self, picked: list[Assignment]) -> list[Sequence]:
        """Closes the sequences of a batch that failed; returns those that were open."""
        dropped = [a.sequence for a in picked if not a.sequence.closed]
        for assignment in picked:
            sequence = assignment.sequence
            self._end_run(assignment)
            sequence.closed = True
            self.states.end(sequence)
            self.states.release(sequence)  # its state was not written: its children take a halo
            self.retries.forget(sequence)
        return dropped

    def _size(self) -> int:
        """Rows of the next batch: few while there are streams, however many, since a stream waits
        for all of the batch."""
        if self._prompt_ready or self._stream_ready:
            return min(self.budget.tokens, self.budget.stream_tokens, self.memory.rows)
        return min(self.budget.tokens * self.turns.scale, self.memory.rows)

    def _pick_streams(self, streams: deque[Sequence], left: int, picked: list[Assignment]) -> int:
        """Picks streams in their turns, one without a slot at least; returns the rows.

        One that nobody reads has none, and gives its slot to a prompt: it goes on after a halo.
        """
        share = len(streams)
        if share >= self.policy.shared_streams:
            share = -(-share // self.workers)
        used, halos = 0, 0
        later: list[Sequence] = []
        for _ in range(len(streams)):
            if used - halos >= min(left, share):
                break
            sequence = streams.popleft()
            halo = sequence.halo(self.halo)
            if halo and halos and used + halo >= left:
                later.append(sequence)
                continue
            streams.append(sequence)
            if sequence.running:
                continue
            if sequence.stalled:
                if not self.states.free and (self.prompts or self.bulk_prompts):
                    self.states.release(sequence)
                continue
            picked.append(
                self._take(sequence, 1) if sequence.slot is None else self._step(sequence)
            )
            used, halos = used + 1 + halo, halos + halo
        streams.extendleft(reversed(later))
        return used

    def _pick_prompts(
        self, prompts: Prompts, left: int, picked: list[Assignment], *, due: bool = True
    ) -> int:
        """Picks short prompts, if `due` at least one; they become streams, and hold a slot from now
        on. Returns their rows."""
        open_streams = chain(self.streams, self.bulk_streams)
        # a stalled stream without a slot gives none back
        if not self.states.free and all(s.stalled and s.slot is None for s in open_streams):
            self.states.release_shared(prompts)
        streams = self.streams if prompts is self.prompts else self.bulk_streams
        used = 0
        for sequence in prompts.ready():
            cost = 1 + sequence.halo(self.halo)
            if cost > left - used and not due:
                break
            prompts.changed(sequence)
            picked.append(self._take(sequence, 1))
            if sequence.follow is not None:
                streams.append(sequence)
            used += cost
            due = False
        prompts.forget()
        return used

    def _pick_texts(self, left: int, *, others_waiting: bool) -> list[Assignment]:
        rows = self.turns.fill(left, self.running_rows, others_waiting=others_waiting)
        picked = [self._take(sequence, room) for sequence, room in rows.by_sequence.items()]
        for sequence in rows.by_sequence:
            if isinstance(sequence.follow, Generation) and sequence.computed == sequence.rows:
                bulk = self._prompts_of(sequence) is self.bulk_prompts
                (self.bulk_streams if bulk else self.streams).append(sequence)
        self.turns.forget()
        return picked

    def _step(self, sequence: Sequence) -> Assignment:
        """The row of the token that a stream has generated last: as `_take`, in fewer steps."""
        assert sequence.slot is not None
        step = Step(sequence.generated[-1], sequence.slot, sequence.computed)
        sequence.computed += 1
        sequence.running = True
        self.counts.decode += 1
        return Assignment(sequence, step)

    def _take(self, sequence: Sequence, room: int) -> Assignment:
        """The next `room` rows of a sequence, and a halo before them if it has no state."""
        start, halo = sequence.computed, sequence.halo(self.halo)
        stop = start + room
        read_slot = sequence.state_slot
        last = stop == sequence.rows
        keeps_state = not last or isinstance(sequence.follow, Generation) or sequence.children > 0
        if keeps_state:
            self.states.give(sequence)
        piece = Piece(
            sequence.slice(start - halo, stop),
            read_slot,
            sequence.slot if keeps_state else None,
            *sequence.wanted(start, stop, halo),
            position=start - halo,
            top=sequence.graph_top,
            halo=halo,
        )
        sequence.state_lost = False
        sequence.computed = stop
        sequence.running = True
        if sequence.caller is not None:
            sequence.caller.begun = True
        if sequence.parent is not None:
            sequence.parent.readers += 1
        self.counts.add(sequence, halo, room)
        return Assignment(sequence, piece)

    def _end_run(self, assignment: Assignment) -> None:
        """Notes that the batch with a piece is over."""
        sequence = assignment.sequence
        self.running_rows -= assignment.piece.rows
        sequence.running = False
        if sequence.parent is not None:
            sequence.parent.readers -= 1
            self.states.leave_parent(sequence)
