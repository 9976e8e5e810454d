"""Which rows run next, and what their results mean. Synchronous; knows no threads and no ONNX.

There is no prefill phase and no decode phase: a sequence has tokens known and rows computed, and
each step gives some sequences rows to catch up. Streams (one row each, latency matters) have the
first right to rows, then short prompts, then everything else in fair turns; each kind keeps a
reserved share of the batch, so that none starves another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate

from app.engine.planner import Piece, Step
from app.engine.results import Assignment, results
from app.engine.runtime.outputs import Outputs
from app.engine.sequence import Event, Finished, Generation, Sequence
from app.engine.slots import Slots
from model.core.graph import Indices

TURN_ROWS = 128
"""Rows that a request gets of a batch before the next request's turn."""
YOUNG_ROWS = 512
"""A request that has had fewer rows goes before those that had more, in the order of coming."""
CROWD = 8
"""While so many requests or more wait, and no stream does, batches and turns have twice the rows:
each waits for others anyway, and a row of a larger batch costs less."""
_SHARED_STREAMS = 8
"""So many streams or more are shared among the workers; fewer fit into one batch."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Rows of a batch: `tokens` at most, twice as many for a crowd, `stream_tokens` while streams
    are open. `shared` rows or more that one batch could hold are shared among the workers, fewer
    are left to a worker that runs; None for neither.

    So many rows at most have a distribution too: as wide as the vocabulary, those of a full batch
    would leave the processor's cache.
    """

    tokens: int
    stream_tokens: int
    shared: int | None = None


@dataclass(slots=True)
class RowCounts:
    """Rows by kind. A halo row is computed again only for the rows behind it. A dummy row fills a
    batch up to the number that its products need."""

    score: int = 0
    prefill: int = 0
    decode: int = 0
    halo: int = 0
    dummy: int = 0


class Request:
    """Sequences that take turns as one: they came from one caller, who may add more."""

    def __init__(self) -> None:
        self.waiting: deque[Sequence] = deque()
        self.had = 0
        """Rows so far."""


class Scheduler:
    """Streams, prompts and requests that wait for rows.

    Several batches may run at a time, one for each of the `workers`: a sequence is in one of them
    at most. receptive_field: R; a piece without a state is preceded by R - 1 rows of halo.
    """

    def __init__(
        self, receptive_field: int, budget: Budget, slots: Slots, workers: int = 1
    ) -> None:
        self.halo = receptive_field - 1
        self.budget, self.slots, self.workers = budget, slots, workers
        self.streams: deque[Sequence] = deque()
        self.prompts: deque[Sequence] = deque()
        self.requests: deque[Request] = deque()
        self.counts = RowCounts()
        self.running_rows = 0
        """Rows of the batches under way."""

    def add(self, request: Request, sequences: Iterable[Sequence]) -> None:
        """Takes sequences of a request."""
        arrived = list(sequences)
        begun = {s.parent for s in arrived if isinstance(s.follow, Generation)}
        for sequence in arrived:
            if sequence.parent is not None:
                sequence.parent.children += 1
            prompt = isinstance(sequence.follow, Generation) or sequence in begun
            if prompt and self._remaining(sequence) == 1:
                self.prompts.append(sequence)
            else:
                request.waiting.append(sequence)
        if request.waiting and request not in self.requests:
            self.requests.append(request)

    def cancel(self, sequence: Sequence) -> None:
        """Drops a sequence; what of it is still queued is passed over when its turn comes."""
        if not sequence.closed:
            sequence.closed = True
            if not sequence.running:
                self._end(sequence)

    @property
    def idle(self) -> bool:
        """Whether nothing waits for rows."""
        return not (self.streams or self.prompts or self.requests)

    @property
    def ready(self) -> bool:
        """Whether something may have rows that no running batch holds."""
        return (
            any(not self._waits(s) for s in self.prompts)
            or any(not s.running for s in self.streams)
            or self._texts_ready
        )

    @property
    def _texts_ready(self) -> bool:
        return any(self._may_run(s) for r in self.requests for s in r.waiting)

    def _may_run(self, sequence: Sequence) -> bool:
        """Whether a sequence of a request may have rows of a batch now."""
        done = sequence.closed or sequence.running or self._left(sequence)
        return not (done or self._waits(sequence))

    @staticmethod
    def _left(sequence: Sequence) -> bool:
        """Whether its request is done with it: a stream has its turns among the streams. In this
        order, since the thread that holds it may add a token meanwhile."""
        return sequence.computed == sequence.rows or sequence.streaming

    def pick(self) -> list[Assignment]:
        """The next batch's pieces; empty only when a batch runs that holds all that waits, or whose
        end few rows should wait for, or when nothing waits."""
        self._forget_closed()
        if self.idle:
            return []
        left = self._rows()
        others = bool(self.prompts) or self._texts_ready
        picked = self._pick_streams(left - left // 4 if others else left)
        left -= sum(p.piece.rows for p in picked)
        prompts = self._pick_prompts(left - left // 2 if self.requests else left)
        picked += prompts
        left -= sum(p.piece.rows for p in prompts)
        picked += self._pick_requests(left, beside=bool(picked or self.streams))
        self.running_rows += sum(p.piece.rows for p in picked)
        return picked

    def settle(self, picked: list[Assignment], outputs: Outputs) -> list[tuple[Sequence, Event]]:
        """Takes a batch's results."""
        events = results(picked, outputs)
        return events + [(sequence, Finished()) for sequence in self.finish(picked)]

    def finish(self, picked: list[Assignment]) -> list[Sequence]:
        """Ends the run of a batch whose `results` have been read; the sequences that are done."""
        done = []
        for assignment in picked:
            sequence = assignment.sequence
            self._landed(assignment)
            if not sequence.closed and sequence.computed == sequence.rows:
                sequence.closed = True
                done.append(sequence)
            if sequence.closed:
                self._end(sequence)
        return done

    def drop(self, picked: list[Assignment]) -> list[Sequence]:
        """Closes the sequences of a batch that could not be run, and names those that were open."""
        dropped = [a.sequence for a in picked if not a.sequence.closed]
        for assignment in picked:
            sequence = assignment.sequence
            self._landed(assignment)
            sequence.closed = True
            self._end(sequence)
            self._release(sequence)  # its state was not written: whoever waits for it takes a halo
        return dropped

    def _rows(self) -> int:
        """Few while there are streams, however many: a stream waits for the whole batch, and the
        distributions of more rows leave the processor's cache. Many for a crowd."""
        if self.prompts or any(not s.running for s in self.streams):
            return min(self.budget.tokens, self.budget.stream_tokens)
        return self.budget.tokens * self._crowding

    @property
    def _crowding(self) -> int:
        """By how much batches and turns are larger than ordinary ones."""
        return 2 if len(self.requests) >= CROWD else 1

    def _pick_streams(self, left: int) -> list[Assignment]:
        share = len(self.streams)
        if share >= _SHARED_STREAMS:
            share = -(-share // self.workers)
        picked: list[Assignment] = []
        for _ in range(len(self.streams)):
            if len(picked) >= min(left, share):
                break
            sequence = self.streams.popleft()
            self.streams.append(sequence)
            if not sequence.running:
                known = sequence.slot is not None  # else it takes a halo
                picked.append(self._step(sequence) if known else self._take(sequence, 1))
        return picked

    def _pick_prompts(self, left: int) -> list[Assignment]:
        """Short prompts become streams; each holds a slot from here on."""
        picked: list[Assignment] = []
        if not self.slots.free and not self.streams:
            # shared beginnings hold all slots: their choices take halos instead
            for sequence in self.prompts:
                parent = sequence.parent
                if parent is not None and not self._waits(sequence) and not parent.readers:
                    self._release(parent)
        waiting: list[Sequence] = []
        while self.prompts:
            sequence = self.prompts[0]
            if self._waits(sequence):
                waiting.append(self.prompts.popleft())
                continue
            if not self.slots.free:
                break
            cost = 1 + self._halo_of(sequence)
            if cost > left and picked:
                break
            self.prompts.popleft()
            picked.append(self._take(sequence, 1))
            if sequence.follow is not None:
                self.streams.append(sequence)
            left -= cost
            if left <= 0:
                break
        self.prompts.extendleft(reversed(waiting))  # they keep their place in line
        return picked

    def _pick_requests(self, left: int, *, beside: bool) -> list[Assignment]:
        """Turns of the young, then of the others, who have a reserved share; at least one piece,
        unless few rows are left to a worker that runs.

        beside: whether the batch has other rows, or streams are open, whose batches are small:
        nothing is gained by waiting for the next one.
        """
        filling = _Filling(self.budget.stream_tokens)
        turn = TURN_ROWS * self._crowding
        young = [request for request in self.requests if request.had < YOUNG_ROWS]
        old = [request for request in self.requests if request.had >= YOUNG_ROWS]
        if self.budget.shared is not None and not old:
            young = self._shared(young, left, self.budget.shared, beside=beside)
        used = self._turns(young, left - left // 4 if old else left, turn, filling)
        if old:
            used += self._turns(old, left - used, turn, filling)
            self._turns(young, left - used, turn, filling)
        picked = [self._take(sequence, room) for sequence, room in filling.rooms.items()]
        for sequence in filling.rooms:
            if isinstance(sequence.follow, Generation) and sequence.computed == sequence.rows:
                self.streams.append(sequence)
        for request in self.requests:
            while request.waiting and self._left(request.waiting[0]):
                request.waiting.popleft()
        self.requests = deque(r for r in self.requests if r.waiting)
        return picked

    def _shared(
        self, young: list[Request], left: int, least: int, *, beside: bool
    ) -> list[Request]:
        """A worker's share, the first, of requests that would all fit into its batch: the next
        worker would find nothing, until these have been answered and their callers ask again.

        None of few rows while others run: the core is worth more to those who read requests, and
        the next batch has more rows. left: rows of the batch. least: rows that are worth sharing,
        those that run among them. beside: whether they are not to wait."""
        sizes: list[int] = []
        for request in young:
            ready = [s for s in request.waiting if self._may_run(s)]
            sizes.append(sum(self._remaining(s) + self._halo_of(s) for s in ready))
            left -= sizes[-1]
            if left < 0:
                return young
            beside = beside or any(s.wide for s in ready)  # the next batch has no room for more
        total = sum(sizes)
        if self.running_rows and not beside and self.running_rows + total < least:
            return []  # whoever ends the last batch that runs will take them
        if total < least:
            return young
        before = accumulate(sizes, initial=0)
        return [r for r, rows in zip(young, before, strict=False) if rows * self.workers < total]

    def _turns(self, requests: list[Request], left: int, rows: int, filling: _Filling) -> int:
        """One turn of up to `rows` after another until up to `left` are used, always one; returns
        them."""
        turns, total = deque(requests), 0
        while turns and (left > total or not filling.rooms):
            request = turns.popleft()
            used, more = self._turn(request, min(left - total, rows), filling)
            if used:
                total += used
                if more:
                    turns.append(request)
                if request.had >= YOUNG_ROWS:  # takes turns with its like
                    self.requests.remove(request)
                    self.requests.append(request)
                request.had += used
        return total

    def _turn(self, request: Request, left: int, filling: _Filling) -> tuple[int, bool]:
        """Gives up to `left` rows to a request's sequences, in order; returns the rows used, and
        whether it could use more."""
        used = 0
        rooms = filling.rooms
        for sequence in request.waiting:
            given = rooms.get(sequence, 0)
            need = self._remaining(sequence) - given
            if not need or not self._may_run(sequence):
                continue
            halo = 0 if given else self._halo_of(sequence)
            # a halo for few rows is waste: wait for the next batch, unless this one is empty
            least = min(need, max(halo // 2, 1))
            room = min(need, left - used - halo)
            if sequence.follow is not None or sequence.wide:
                if filling.wide <= 0:
                    break
                if sequence.wide:
                    least, room = min(least, filling.wide), min(room, filling.wide)
            if room < least:
                if rooms:
                    break
                room = least
            filling.give(sequence, room)
            used += room + halo
            if room < need:
                break
        else:
            return used, False
        return used, True

    def _step(self, sequence: Sequence) -> Assignment:
        """The row of the token that a stream has generated last: what `_take` gives, in short."""
        assert sequence.slot is not None
        step = Step(sequence.generated[-1], sequence.slot, sequence.computed)
        sequence.computed += 1
        sequence.running = True
        self.counts.decode += 1
        return Assignment(sequence, step)

    def _take(self, sequence: Sequence, room: int) -> Assignment:
        """The next `room` rows of a sequence, and a halo before them if it has no state."""
        start, halo = sequence.computed, self._halo_of(sequence)
        stop = start + room
        last = stop == sequence.rows
        generating = isinstance(sequence.follow, Generation)
        read = self._state_of(sequence)
        carried = not last or generating or sequence.children > 0
        if sequence.slot is None and carried:
            sequence.slot = self.slots.take()
        piece = Piece(
            sequence.slice(start - halo, stop),
            read,
            sequence.slot if carried else None,
            *self._wanted(sequence, start, stop, halo, last=last),
            position=start - halo,
            top=sequence.best,
        )
        sequence.computed = stop
        sequence.running = True
        if sequence.parent is not None:
            sequence.parent.readers += 1
        self._count(sequence, halo, room)
        return Assignment(sequence, piece)

    def _wanted(
        self, sequence: Sequence, start: int, stop: int, halo: int, *, last: bool
    ) -> tuple[range, Indices, range]:
        """Rows to score, their targets and rows whose distribution is wanted, in the piece."""
        first = max(start, sequence.score_from)
        end = min(stop, len(sequence.tokens) - 1)
        scored = range(first - start + halo, max(first, end) - start + halo)
        targets = sequence.tokens[first + 1 : max(first, end) + 1]
        follow = last and sequence.follow is not None
        final = stop - 1 - start + halo
        if sequence.wide:  # all is read from the distributions
            return range(0), targets[:0], range(scored.start, final + 1 if follow else scored.stop)
        return scored, targets, range(final, final + 1) if follow else range(0)

    def _halo_of(self, sequence: Sequence) -> int:
        return 0 if self._state_of(sequence) is not None else min(self.halo, sequence.computed)

    @staticmethod
    def _state_of(sequence: Sequence) -> int | None:
        """The slot with the state in front of the next row; None for none."""
        if sequence.slot is None and sequence.parent is not None:
            return sequence.parent.slot
        return sequence.slot

    @staticmethod
    def _waits(sequence: Sequence) -> bool:
        """Whether the state to go on from is yet to be computed by an earlier batch."""
        parent = sequence.parent
        return parent is not None and (parent.running or not parent.closed)

    def _leave_parent(self, sequence: Sequence) -> None:
        parent, sequence.parent = sequence.parent, None
        if parent is not None:
            parent.children -= 1
            if parent.closed and not parent.running and not parent.children:
                self._release(parent)

    @staticmethod
    def _remaining(sequence: Sequence) -> int:
        return sequence.rows - sequence.computed

    def _count(self, sequence: Sequence, halo: int, rows: int) -> None:
        if not isinstance(sequence.follow, Generation):
            self.counts.score += rows
            self.counts.halo += halo
        elif sequence.streaming:
            self.counts.decode += rows
            self.counts.halo += halo
        else:
            self.counts.prefill += rows + halo

    def _landed(self, assignment: Assignment) -> None:
        """The batch that held a piece is over."""
        sequence = assignment.sequence
        self.running_rows -= assignment.piece.rows
        sequence.running = False
        if sequence.parent is not None:
            sequence.parent.readers -= 1
            self._leave_parent(sequence)

    def _end(self, sequence: Sequence) -> None:
        """Gives back what a closed sequence holds and nobody goes on from."""
        self._leave_parent(sequence)
        if not sequence.children or sequence.computed < sequence.rows:
            self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        if sequence.slot is not None:
            self.slots.give_back(sequence.slot)
            sequence.slot = None

    def _forget_closed(self) -> None:
        self.streams = deque(s for s in self.streams if not s.closed)
        self.prompts = deque(s for s in self.prompts if not s.closed)
        for request in self.requests:
            while request.waiting and request.waiting[0].closed:
                request.waiting.popleft()
        self.requests = deque(r for r in self.requests if r.waiting)


@dataclass(slots=True)
class _Filling:
    """A batch that takes turns' rows. wide: rows left that may have a distribution."""

    wide: int
    rooms: dict[Sequence, int] = field(default_factory=dict)
    """Rows of each sequence so far."""

    def give(self, sequence: Sequence, rows: int) -> None:
        """More rows of a sequence."""
        given = self.rooms.get(sequence, 0)
        self.rooms[sequence] = given + rows
        if sequence.wide:
            self.wide -= rows
        elif sequence.follow is not None and not given:
            self.wide -= 1
