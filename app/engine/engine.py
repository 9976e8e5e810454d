"""A model's engine: a loop for each device, with one interface for callers, and a limit of work."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager

from app.engine.batches import Runner
from app.engine.loop import EngineLoop, Ticket
from app.engine.sequence import Sequence
from app.engine.turns import CallerQueue
from app.errors import LateBatchError, NotReadyError, OverloadError
from app.metrics import Metrics

_log = logging.getLogger(__name__)
_MAX_RETRY_SECONDS = 120


class Engine:
    """Loops that run the same model, each with its pool: one on a CPU, one on each GPU."""

    def __init__(self, loops: list[EngineLoop]) -> None:
        self.loops = loops

    @property
    def runner(self) -> Runner:
        """The first loop's runner; the other loops' are of its kind."""
        return self.loops[0].runner

    @property
    def tokens_per_second(self) -> float:
        """Rows run in a second lately, on all devices."""
        return sum(loop.tokens_per_second for loop in self.loops)

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

    def open_caller(self) -> Caller:
        """A caller whose unfinished sequences must be cancelled at the end."""
        return Caller(self)

    @asynccontextmanager
    async def caller(self) -> AsyncIterator[Caller]:
        """A caller, whose sequences take turns as one; unfinished ones are cancelled at the end."""
        caller = self.open_caller()
        try:
            yield caller
        finally:
            caller.cancel(*caller.tickets)


class Caller:
    """Submits sequences for one request, to the loops that suit."""

    def __init__(self, engine: Engine) -> None:
        self._queues = [(loop, CallerQueue()) for loop in engine.loops]
        self._loop_of: dict[Sequence, int] = {}
        """Among several loops, the one that has a sequence and its state."""
        self.tickets: list[Ticket] = []

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


class Admission:
    """Counts the tokens of unfinished requests, against a limit."""

    def __init__(self, limit: int, metrics: Metrics) -> None:
        self.limit, self.metrics = limit, metrics
        self.tokens = 0
        metrics.queue_tokens.set_function(lambda: self.tokens)

    @contextmanager
    def admitted(self, tokens: int, tokens_per_second: float) -> Iterator[None]:
        """Counts `tokens` while the block runs. Raises OverloadError if they do not fit."""
        if self.tokens and self.tokens + tokens > self.limit:
            self.metrics.rejected.labels("overloaded").inc()
            wait = min(_MAX_RETRY_SECONDS, max(1, math.ceil(self.tokens / tokens_per_second)))
            raise OverloadError(
                f"{self.tokens} tokens are waiting and this request has {tokens}, which is over "
                f"max_queue_tokens, {self.limit}; try again in {wait} s",
                wait,
            )
        self.tokens += tokens
        try:
            yield
        finally:
            self.tokens -= tokens
