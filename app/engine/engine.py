"""A model's engine: a loop for each device, and one way in for those who have work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from collections.abc import Sequence as Many
from contextlib import asynccontextmanager

from app.engine.loop import EngineLoop, Runner, Ticket
from app.engine.scheduler import Request
from app.engine.sequence import Sequence


class Engine:
    """Loops that run the same model, each with states of its own: one on a CPU, one on each GPU."""

    def __init__(self, loops: Many[EngineLoop]) -> None:
        self.loops = loops

    @property
    def runner(self) -> Runner:
        """What runs a batch of the first loop; the others' are of its kind."""
        return self.loops[0].runner

    @property
    def tokens_per_second(self) -> float:
        """Rows that have been run in a second lately, on all devices."""
        return sum(loop.tokens_per_second for loop in self.loops)

    @property
    def waiting(self) -> int:
        """The `work` of what is unfinished, on all devices; 0 if nothing is."""
        return sum(loop.waiting for loop in self.loops)

    @property
    def running(self) -> bool:
        """Whether every loop takes work."""
        return all(loop.running for loop in self.loops)

    @property
    def why(self) -> str:
        """Why one of them does not."""
        return next(loop.why for loop in self.loops if not loop.running)

    def start(self) -> None:
        """Starts the threads."""
        for loop in self.loops:
            loop.start()

    def end(self) -> None:
        """Has the threads end after the running batches; what is left fails."""
        for loop in self.loops:
            loop.end()

    def stop(self) -> None:
        """The same, and waits for them."""
        for loop in self.loops:
            loop.stop()

    def open_caller(self) -> Caller:
        """A caller whose unfinished sequences must be cancelled at the end."""
        return Caller(self)

    @asynccontextmanager
    async def caller(self) -> AsyncIterator[Caller]:
        """Whoever submits sequences that take turns as one; leaving cancels the unfinished."""
        caller = self.open_caller()
        try:
            yield caller
        finally:
            caller.cancel(*caller.tickets)


class Caller:
    """One request's way into the engine."""

    def __init__(self, engine: Engine) -> None:
        self._ways = [(loop, Request()) for loop in engine.loops]
        self._homes: dict[Sequence, int] = {}
        """Of several loops, the one that has a sequence and its state."""
        self.tickets: list[Ticket] = []

    def submit(self, sequences: Iterable[Sequence]) -> list[Ticket]:
        """Queues sequences behind those submitted before.

        Raises NotReadyError when the engine takes no more work.
        """
        tickets = [Ticket(sequence, asyncio.Queue()) for sequence in sequences]
        self.tickets += tickets
        if len(self._ways) == 1:
            shares = [tickets]
        else:
            shares = self._shares(tickets)
        for (loop, request), share in zip(self._ways, shares, strict=True):
            if share:
                loop.submit(request, share)
        return tickets

    def cancel(self, *tickets: Ticket) -> None:
        """Drops what is unfinished of tickets."""
        for loop, _ in self._ways:
            loop.cancel(tickets)

    def _shares(self, tickets: list[Ticket]) -> list[list[Ticket]]:
        """Tickets by loop: each where its parent's state is, or else where the least work waits."""
        shares: list[list[Ticket]] = [[] for _ in self._ways]
        waiting = [loop.waiting for loop, _ in self._ways]
        for ticket in tickets:
            sequence = ticket.sequence
            if sequence.parent is None:
                home = waiting.index(min(waiting))
            else:
                home = self._homes[sequence.parent]
            self._homes[sequence] = home
            waiting[home] += sequence.work
            shares[home].append(ticket)
        return shares
