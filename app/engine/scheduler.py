"""Which rows run next, and which sequences end with them. Synchronous, without threads and ONNX.

There is no prefill phase and no decode phase: a sequence has known tokens and computed rows, and
each step gives some sequences rows to catch up. Streams (one row each, latency matters) come
first, then short prompts, then everything else in fair turns; each kind has a reserved share of the
batch, so that none starves another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from app.engine.batches import Assignment
from app.engine.planner import Piece, Step
from app.engine.policy import POLICY, Budget, Policy
from app.engine.retry import MemoryLimit, Retries, divisible
from app.engine.sequence import Generation, Sequence
from app.engine.turns import CallerQueue, Turns
from model.core.graph import SCRATCH_SLOT, Indices


@dataclass(slots=True)
class RowCounts:
    """Rows by kind. A halo row is computed again only for the rows after it. A dummy row fills a
    batch up to the number that its products need."""

    score: int = 0
    prefill: int = 0
    decode: int = 0
    halo: int = 0
    dummy: int = 0


class Scheduler:
    """Streams, prompts and callers' texts that wait for rows.

    Several batches may run at a time, one for each of the `workers`; a sequence is in at most one
    of them. receptive_field: R; a piece without a state is preceded by R - 1 rows of halo. slots:
    states that the pool holds besides the scratch slot.
    """

    def __init__(
        self,
        receptive_field: int,
        budget: Budget,
        slots: int,
        workers: int = 1,
        policy: Policy = POLICY,
    ) -> None:
        self.halo = receptive_field - 1
        self.budget, self.workers, self.policy = budget, workers, policy
        self.free_slots = [slot for slot in range(slots, -1, -1) if slot != SCRATCH_SLOT]
        self.streams: deque[Sequence] = deque()
        self.prompts: deque[Sequence] = deque()
        self.turns = Turns(self.halo, budget, workers, policy)
        self.retries = Retries(self.halo, self._take, self._end)
        self.memory = MemoryLimit(2 * budget.tokens, policy)
        self.counts = RowCounts()
        self.running_rows = 0
        """Rows of the running batches."""

    def add(self, queue: CallerQueue, sequences: Iterable[Sequence]) -> None:
        """Accepts sequences of a caller."""
        added = list(sequences)
        prompts = {s.parent for s in added if isinstance(s.follow, Generation)}
        for sequence in added:
            if sequence.parent is not None:
                sequence.parent.children += 1
            prompt = isinstance(sequence.follow, Generation) or sequence in prompts
            if prompt and sequence.rows_left == 1:
                self.prompts.append(sequence)
            else:
                queue.waiting.append(sequence)
        self.turns.add(queue)

    def cancel(self, sequence: Sequence) -> None:
        """Cancels a sequence; its queued rows are skipped later."""
        if not sequence.closed:
            sequence.closed = True
            if not sequence.running:
                self._end(sequence)

    @property
    def idle(self) -> bool:
        """Whether nothing waits for rows."""
        return not (self.streams or self.prompts or self.turns.queues or self.retries.any)

    @property
    def ready(self) -> bool:
        """Whether something may have rows that no running batch holds."""
        if self.retries.waiting:
            return True
        prompt_ready = any(not s.waits_for_parent for s in self.prompts)
        return prompt_ready or self._stream_ready or self.turns.ready

    @property
    def _stream_ready(self) -> bool:
        return any(not s.running for s in self.streams)

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
        self.prompts = deque(s for s in self.prompts if not s.closed)
        self.turns.forget()
        left = self._size()
        # 2. Streams, a row each. They leave a quarter of the batch if anything else waits.
        others = bool(self.prompts) or self.turns.ready
        picked = self._pick_streams(left - left // 4 if others else left)
        left -= sum(p.piece.rows for p in picked)
        # 3. Short prompts. They leave half of the rest if callers' texts wait.
        prompts = self._pick_prompts(left - left // 2 if self.turns.queues else left)
        picked += prompts
        left -= sum(p.piece.rows for p in prompts)
        # 4. Texts, in the turns of their callers.
        picked += self._pick_texts(left, others_waiting=bool(picked or self.streams))
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
                self._end(sequence)
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
                self._end(sequence)
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
            self._end(sequence)
            self._release(sequence)  # its state was not written: its children take a halo
            self.retries.forget(sequence)
        return dropped

    def _size(self) -> int:
        """Rows of the next batch: few while there are streams, however many, since a stream waits
        for all of the batch."""
        if self.prompts or self._stream_ready:
            return min(self.budget.tokens, self.budget.stream_tokens, self.memory.rows)
        return min(self.budget.tokens * self.turns.scale, self.memory.rows)

    def _pick_streams(self, left: int) -> list[Assignment]:
        share = len(self.streams)
        if share >= self.policy.shared_streams:
            share = -(-share // self.workers)
        picked: list[Assignment] = []
        for _ in range(len(self.streams)):
            if len(picked) >= min(left, share):
                break
            sequence = self.streams.popleft()
            self.streams.append(sequence)
            if not sequence.running:
                has_state = sequence.slot is not None  # else it takes a halo
                picked.append(self._step(sequence) if has_state else self._take(sequence, 1))
        return picked

    def _pick_prompts(self, left: int) -> list[Assignment]:
        """Short prompts become streams; each holds a slot from now on."""
        picked: list[Assignment] = []
        if not self.free_slots and not self.streams:
            self._release_shared_prompts()
        waiting: list[Sequence] = []
        while self.prompts and (left > 0 or not picked):
            sequence = self.prompts[0]
            if sequence.waits_for_parent:
                waiting.append(self.prompts.popleft())
                continue
            cost = 1 + sequence.halo(self.halo)
            if not self.free_slots or (cost > left and picked):
                break
            self.prompts.popleft()
            picked.append(self._take(sequence, 1))
            if sequence.follow is not None:
                self.streams.append(sequence)
            left -= cost
        self.prompts.extendleft(reversed(waiting))  # they keep their position in the queue
        return picked

    def _release_shared_prompts(self) -> None:
        """Frees the slots of shared prompts when they hold all: their choices compute halos."""
        for sequence in self.prompts:
            parent = sequence.parent
            if parent is not None and not sequence.waits_for_parent and not parent.readers:
                self._release(parent)

    def _pick_texts(self, left: int, *, others_waiting: bool) -> list[Assignment]:
        rows = self.turns.fill(left, self.running_rows, others_waiting=others_waiting)
        picked = [self._take(sequence, room) for sequence, room in rows.by_sequence.items()]
        for sequence in rows.by_sequence:
            if isinstance(sequence.follow, Generation) and sequence.computed == sequence.rows:
                self.streams.append(sequence)
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
        if sequence.slot is None and keeps_state and self.free_slots:
            sequence.slot = self.free_slots.pop()
        piece = Piece(
            sequence.slice(start - halo, stop),
            read_slot,
            sequence.slot if keeps_state else None,
            *_wanted(sequence, start, stop, halo),
            position=start - halo,
            top=sequence.graph_top,
            halo=halo,
        )
        sequence.state_lost = False
        sequence.computed = stop
        sequence.running = True
        if sequence.parent is not None:
            sequence.parent.readers += 1
        self._count(sequence, halo, room)
        return Assignment(sequence, piece)

    def _count(self, sequence: Sequence, halo: int, rows: int) -> None:
        if not isinstance(sequence.follow, Generation):
            self.counts.score += rows
            self.counts.halo += halo
        elif sequence.streaming:
            self.counts.decode += rows
            self.counts.halo += halo
        else:
            self.counts.prefill += rows + halo

    def _end_run(self, assignment: Assignment) -> None:
        """Notes that the batch with a piece is over."""
        sequence = assignment.sequence
        self.running_rows -= assignment.piece.rows
        sequence.running = False
        if sequence.parent is not None:
            sequence.parent.readers -= 1
            self._leave_parent(sequence)

    def _end(self, sequence: Sequence) -> None:
        """Frees a closed sequence's slot unless another sequence still needs its state."""
        self._leave_parent(sequence)
        if not sequence.children or sequence.computed < sequence.rows:
            self._release(sequence)

    def _leave_parent(self, sequence: Sequence) -> None:
        parent, sequence.parent = sequence.parent, None
        if parent is not None:
            parent.children -= 1
            if parent.closed and not parent.running and not parent.children:
                self._release(parent)

    def _release(self, sequence: Sequence) -> None:
        if sequence.slot is not None:
            self.free_slots.append(sequence.slot)  # the next holder writes before it reads
            sequence.slot = None


def _wanted(sequence: Sequence, start: int, stop: int, halo: int) -> tuple[range, Indices, range]:
    """The piece's rows to score, their targets, and its rows whose distribution is wanted."""
    first = max(start, sequence.score_from)
    end = max(first, min(stop, len(sequence.tokens) - 1))
    shift = halo - start
    scored = range(first + shift, end + shift)
    targets = sequence.tokens[first + 1 : end + 1]
    last_is_wanted = stop == sequence.rows and sequence.follow is not None
    if sequence.needs_distribution:  # scores are read from the distributions
        final = stop + shift if last_is_wanted else scored.stop
        return range(0), targets[:0], range(scored.start, final)
    return scored, targets, range(stop - 1 + shift, stop + shift) if last_is_wanted else range(0)
