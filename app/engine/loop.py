"""The engine's thread: pick, plan, run, settle. The only file with threads."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from app.engine.planner import plan
from app.engine.scheduler import Assignment, Request, RowCounts, Scheduler
from app.engine.sequence import Event, Failed, Finished, Sequence
from app.errors import EngineError, NotReadyError
from app.metrics import Metrics
from model.graph import FlatBatch, Floats, Precision

_log = logging.getLogger(__name__)


class Runner(Protocol):
    """What runs a flat batch (`session.Session`, or a test's fake)."""

    taps: int
    precision: Precision
    multiple: int
    """The rows of a batch are filled up to a multiple of it."""

    @property
    def build(self) -> str:
        """What besides the bundle decides the bits of a result."""
        ...

    def run(self, batch: FlatBatch) -> tuple[Floats, Floats]:
        """Log-probabilities of the scored rows [N] and of every next token [M, V]."""
        ...


@dataclass(frozen=True, slots=True)
class Ticket:
    """A submitted sequence and where its events arrive, in order, `Finished` or `Failed` last."""

    sequence: Sequence
    events: asyncio.Queue[Event]


class Caller:
    """One request's way into the engine."""

    def __init__(self, engine: EngineLoop) -> None:
        self.engine, self.request = engine, Request()
        self.tickets: list[Ticket] = []

    def submit(self, sequences: Iterable[Sequence]) -> list[Ticket]:
        """Queues sequences behind those submitted before."""
        tickets = [Ticket(sequence, asyncio.Queue()) for sequence in sequences]
        self.tickets += tickets
        self.engine.submit(self.request, tickets)
        return tickets

    def cancel(self, *tickets: Ticket) -> None:
        """Drops what is unfinished of tickets."""
        self.engine.cancel(tickets)


class EngineLoop:
    """Runs a scheduler's batches on a thread and delivers events to asyncio."""

    def __init__(self, scheduler: Scheduler, runner: Runner, metrics: Metrics) -> None:
        self.scheduler, self.runner, self.metrics = scheduler, runner, metrics
        self.tokens_per_second = 1000.0
        self._arrived = threading.Condition()
        self._added: list[tuple[Request, list[Ticket]]] = []
        self._cancelled: list[Sequence] = []
        self._tickets: dict[Sequence, tuple[asyncio.AbstractEventLoop, Ticket]] = {}
        self._stopping = False
        self._counted = RowCounts()
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the running batch; what is left fails."""
        with self._arrived:
            self._stopping = True
            self._arrived.notify()
        if self._thread.is_alive():
            self._thread.join()

    @asynccontextmanager
    async def caller(self) -> AsyncIterator[Caller]:
        """Whoever submits sequences that take turns as one; leaving cancels the unfinished."""
        caller = Caller(self)
        try:
            yield caller
        finally:
            self.cancel(caller.tickets)

    def submit(self, request: Request, tickets: list[Ticket]) -> None:
        """Queues a caller's tickets. Raises NotReadyError when the server is stopping."""
        loop = asyncio.get_running_loop()
        with self._arrived:
            if self._stopping:
                raise NotReadyError("the server is stopping")
            self._tickets.update({t.sequence: (loop, t) for t in tickets})
            self._added.append((request, tickets))
            self._arrived.notify()

    def cancel(self, tickets: Iterable[Ticket]) -> None:
        """Drops the unfinished sequences among tickets; the running batch is not waited for."""
        with self._arrived:
            self._cancelled += [t.sequence for t in tickets if t.sequence in self._tickets]
            self._arrived.notify()

    @property
    def running(self) -> bool:
        """Whether the thread takes work."""
        return self._thread.is_alive() and not self._stopping

    def _main(self) -> None:
        try:
            while self._receive():
                picked = self.scheduler.pick()
                if picked:
                    self._deliver(self._step(picked))
        except Exception:  # a fault of ours: nothing may wait for a thread that is gone
            _log.exception("engine stopped")
            self.metrics.engine_errors.inc()
        finally:
            with self._arrived:
                self._stopping = True
            self._fail_all()

    def _receive(self) -> bool:
        """Takes what has arrived, waiting for something to do; False to stop."""
        with self._arrived:
            while not (self._added or self._cancelled or self._stopping):
                if not self.scheduler.idle:
                    break
                self._arrived.wait()
            added, self._added = self._added, []
            cancelled, self._cancelled = self._cancelled, []
            for sequence in cancelled:
                self._tickets.pop(sequence, None)
            if self._stopping:
                return False
        for request, tickets in added:
            self.scheduler.add(request, [t.sequence for t in tickets])
        for sequence in cancelled:
            self.scheduler.cancel(sequence)
        return True

    def _step(self, picked: list[Assignment]) -> list[tuple[Sequence, Event]]:
        try:
            batch = plan([a.piece for a in picked], self.runner.taps, self.runner.multiple)
            rows = sum(len(a.piece.tokens) for a in picked)
            self.scheduler.counts.dummy += len(batch.tokens) - rows
            began = time.perf_counter()
            logprobs, following = self.runner.run(batch)
            self._count(len(batch.tokens), time.perf_counter() - began)
            return self.scheduler.settle(picked, logprobs, following)
        except Exception as error:  # one bad batch must not end the server
            _log.exception("engine batch failed")
            self.metrics.engine_errors.inc()
            message = str(error) if isinstance(error, EngineError) else "internal engine error"
            return [(s, Failed(message)) for s in self.scheduler.drop(picked)]

    def _count(self, rows: int, seconds: float) -> None:
        self.metrics.batch_rows.observe(rows)
        self.metrics.batch_seconds.observe(seconds)
        self.tokens_per_second += 0.1 * (rows / seconds - self.tokens_per_second)
        now, before = self.scheduler.counts, self._counted
        for kind in ("score", "prefill", "decode", "halo", "dummy"):
            self.metrics.rows.labels(kind).inc(getattr(now, kind) - getattr(before, kind))
        self._counted = RowCounts(now.score, now.prefill, now.decode, now.halo, now.dummy)

    def _deliver(self, events: list[tuple[Sequence, Event]]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, Event]]] = {}
        with self._arrived:
            for sequence, event in events:
                if sequence in self._tickets:
                    loop, ticket = self._tickets[sequence]
                    by_loop.setdefault(loop, []).append((ticket, event))
                    if isinstance(event, Failed | Finished):
                        del self._tickets[sequence]
        for loop, arrived in by_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_hand_over, arrived)

    def _fail_all(self) -> None:
        with self._arrived:
            left = list(self._tickets)
        self._deliver([(s, Failed("the server is stopping", stopped=True)) for s in left])


def _hand_over(arrived: list[tuple[Ticket, Event]]) -> None:
    for ticket, event in arrived:
        ticket.events.put_nowait(event)
