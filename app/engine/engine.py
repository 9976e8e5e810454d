"""A model's engine: a loop for each device, with one interface for callers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from app.engine.batches import Runner
from app.engine.loop import EngineLoop
from app.engine.sequence import Sequence
from app.engine.tickets import Ticket
from app.engine.turns import CallerQueue
from app.errors import LateBatchError, NotReadyError

_log = logging.getLogger(__name__)


class Engine:
    """Loops that run the same model, each with its pool: one on a CPU, one on each GPU."""

    def __init__(self, loops: list[EngineLoop]) -> None:
        self.loops = loops
        self.large: set[Caller] = set()
        """Callers with more work than is submitted at once."""

    @property
    def runner(self) -> Runner:
        """The first loop's runner; the other loops' are of its kind."""
        return self.loops[0].runner

    @property
    def tokens_per_second(self) -> float:
        """Rows of texts and prompts done in a second while more waited, on all devices."""
        return sum(loop.rate.per_second for loop in self.loops)

    @property
    def due(self) -> int:
        """Rows of submitted texts and prompts that are not delivered, on all devices; but for those
        of prompts that wait for a slot."""
        return sum(loop.outstanding.timed for loop in self.loops)

    @property
    def bulk_due(self) -> int:
        """Those of bulk among them."""
        return sum(loop.outstanding.bulk_timed for loop in self.loops)

    @property
    def waiting(self) -> int:
        """The `work` of all unfinished sequences, on all devices."""
        return sum(loop.waiting for loop in self.loops)

    @property
    def running(self) -> bool:
        """Whether every loop accepts work."""
        return all(loop.running for loop in self.loops)

    @property
    def why(self) -> str:
        """Why one of them does not accept work."""
        return next(loop.why for loop in self.loops if not loop.running)

    @property
    def oldest_batch_seconds(self) -> float:
        """How long the oldest running batch has been running; 0 if none runs."""
        return max(loop.watch.seconds for loop in self.loops)

    def check(self) -> None:
        """Raises NotReadyError if the engine accepts no work, LateBatchError if a batch is late."""
        for loop in self.loops:
            if not loop.running:
                raise NotReadyError(loop.why)
            if loop.watch.late:
                raise LateBatchError(loop.watch.message)

    def start(self) -> None:
        """Starts the threads."""
        for loop in self.loops:
            loop.start()

    def end(self) -> None:
        """Makes the threads end after the running batches; all other work fails.

        It fails at once if a batch is late, which may never end.
        """
        late = any(loop.watch.late for loop in self.loops)
        for loop in self.loops:
            if late:
                loop.abandon(loop.why)
            else:
                loop.end()

    def end_if_hung(self) -> None:
        """Ends the engine if a batch is so late that it will not end; all work fails at once."""
        hung = [loop for loop in self.loops if loop.running and loop.watch.hangs()]
        if hung:
            why = f"the engine has stopped: {hung[0].watch.message}"
            _log.error("engine stopped: %s", hung[0].watch.message)
            for loop in self.loops:
                loop.abandon(why)

    def stop(self) -> bool:
        """As `end`, and waits for the threads, but not for batches that are late.

        Returns whether all have ended.
        """
        self.end()
        ended = [loop.stop() for loop in self.loops]
        return all(ended)

    def open_caller(self, *, bulk: bool = False, patient: bool = False) -> Caller:
        """A caller whose unfinished sequences must be cancelled at the end.

        bulk, patient: as in `CallerQueue`.
        """
        return Caller(self, bulk=bulk, patient=patient)

    @asynccontextmanager
    async def caller(self, *, bulk: bool = False) -> AsyncIterator[Caller]:
        """A caller, whose sequences take turns as one; unfinished ones are cancelled at the end."""
        caller = self.open_caller(bulk=bulk)
        try:
            yield caller
        finally:
            caller.close()


class Caller:
    """Submits sequences for one request, to the loops that suit."""

    def __init__(self, engine: Engine, *, bulk: bool = False, patient: bool = False) -> None:
        self.bulk = bulk
        self._large = engine.large
        self._queues = [(loop, CallerQueue(bulk, patient)) for loop in engine.loops]
        self._loop_of: dict[Sequence, int] = {}
        """Among several loops, the one that has a sequence and its state."""
        self.tickets: list[Ticket] = []
        self.unsubmitted = 0
        """Tokens of the request that are still to be submitted."""

    @property
    def due(self) -> int:
        """Rows of texts and prompts that the engine has and has not delivered."""
        return sum(queue.outstanding for _, queue in self._queues)

    def announce(self, tokens: int) -> None:
        """Says that so many tokens will be submitted in several lots, until `close`."""
        self.unsubmitted = tokens
        self._large.add(self)

    def close(self) -> None:
        """Cancels the unfinished sequences."""
        self.cancel(*self.tickets)
        self._large.discard(self)

    def wake(self) -> None:
        """Says that stalled streams of this caller may go on."""
        for loop, _ in self._queues:
            loop.wake()

    def submit(self, sequences: Iterable[Sequence]) -> list[Ticket]:
        """Queues sequences after those submitted before.

        Raises NotReadyError if the engine accepts no more work.
        """
        tickets = [Ticket(sequence, asyncio.Queue()) for sequence in sequences]
        self.tickets += tickets
        by_loop = [tickets] if len(self._queues) == 1 else self._by_loop(tickets)
        for (loop, queue), some in zip(self._queues, by_loop, strict=True):
            if some:
                loop.submit(queue, some)
        return tickets

    def cancel(self, *tickets: Ticket) -> None:
        """Cancels the unfinished sequences of tickets."""
        for loop, _ in self._queues:
            loop.cancel(tickets)

    def _by_loop(self, tickets: list[Ticket]) -> list[list[Ticket]]:
        """Tickets by loop: each where its parent's state is, or else where the least work waits."""
        by_loop: list[list[Ticket]] = [[] for _ in self._queues]
        waiting = [loop.waiting for loop, _ in self._queues]
        for ticket in tickets:
            sequence, parent = ticket.sequence, ticket.sequence.parent
            index = waiting.index(min(waiting)) if parent is None else self._loop_of[parent]
            self._loop_of[sequence] = index
            waiting[index] += sequence.work
            by_loop[index].append(ticket)
        return by_loop
