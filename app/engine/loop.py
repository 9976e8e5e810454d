"""The engine's threads: pick, plan, run, settle. The only file with threads."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterable
from collections.abc import Sequence as Many
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from app.engine.planner import plan
from app.engine.results import Assignment, draws, results
from app.engine.runtime.outputs import Outputs
from app.engine.sampling.adaptive import tail_terms
from app.engine.scheduler import Request, RowCounts, Scheduler
from app.engine.sequence import Event, Failed, Finished, Generation, Sequence
from app.errors import STOPPING, EngineError, NotReadyError
from app.metrics import Metrics
from model.core.config import Taps
from model.core.flat_batch import FlatBatch
from model.core.graph import Precision

_log = logging.getLogger(__name__)
_WHOLE_ROWS = 256
"""Rows of a text that are worth several threads in 8 bits."""
_FAILURES = 3
"""Batches that fail one after the other before the device is doubted."""


class Runner(Protocol):
    """What runs a flat batch (`session.Session`, or a test's fake)."""

    taps: Taps
    precision: Precision
    multiple: int
    """The rows of a batch are filled up to a multiple of it."""
    clusters: int
    """Tails of an adaptive softmax; 0 for a full one."""

    @property
    def build(self) -> str:
        """What besides the bundle decides the bits of a result."""
        ...

    def run(self, batch: FlatBatch) -> Outputs:
        """What the rows of a batch are wanted for."""
        ...

    def check(self) -> None:
        """Raises EngineError when it does not compute what it should."""
        ...


@dataclass(frozen=True, slots=True)
class Ticket:
    """A submitted sequence and where its events arrive, in order, `Finished` or `Failed` last."""

    sequence: Sequence
    events: asyncio.Queue[Event]
    held: list[Event] = field(default_factory=list)
    """What is yet to be handed over, together with more."""


class EngineLoop:
    """Runs a scheduler's batches on threads and delivers events to asyncio.

    A thread for each of `parts`, which has a share of the processor: while one batch runs, the
    next is planned and the last one's results are read on another. A text or streams that have
    nothing beside them run on `whole`, which has all of the processor, unless they would be no
    faster (`_whole`); so do all batches if there are no parts.
    """

    def __init__(
        self, scheduler: Scheduler, whole: Runner, metrics: Metrics, parts: Many[Runner] = ()
    ) -> None:
        self.scheduler, self.runner, self.metrics = scheduler, whole, metrics
        self.tokens_per_second = 1000.0
        self._arrived = threading.Condition()  # guards what follows
        self._added: list[tuple[Request, list[Ticket]]] = []
        self._cancelled: list[Sequence] = []
        self._tickets: dict[Sequence, tuple[asyncio.AbstractEventLoop, Ticket]] = {}
        self._waiting = 0
        self._changes = 0
        self._announced = False
        self._stopping = False
        self._why = STOPPING
        """What those are told whose work is left over or refused."""
        self._turn = threading.Lock()  # guards what follows, and the scheduler
        self._busy = 0
        self._failures = 0
        """Batches that have failed since one has not."""
        self._counted = RowCounts()
        self._outbox: list[tuple[Sequence, Event]] = []
        kinds = ("score", "prefill", "decode", "halo", "dummy")
        self._rows = {kind: metrics.rows.labels(kind) for kind in kinds}
        own = list(parts) or [whole]
        self._left = len(own)
        self._threads = [
            threading.Thread(target=self._main, args=(part,), name=f"engine-{n}", daemon=True)
            for n, part in enumerate(own)
        ]

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Has the threads end after the running batches; what is left fails."""
        with self._arrived:
            self._stopping = True
            self._arrived.notify_all()

    def stop(self) -> None:
        """The same, and waits for them."""
        self.end()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def submit(self, request: Request, tickets: list[Ticket]) -> None:
        """Queues a caller's tickets. Raises NotReadyError when the threads take no more work.

        A waiting thread is woken once for all that a turn of the event loop queues: batches of few
        rows cost more a row.
        """
        loop = asyncio.get_running_loop()
        with self._arrived:
            if self._stopping:
                raise NotReadyError(self._why)
            self._tickets.update({t.sequence: (loop, t) for t in tickets})
            self._waiting += sum(t.sequence.work for t in tickets)
            self._added.append((request, tickets))
        loop.call_soon(self._announce)

    def _announce(self) -> None:
        """Wakes a waiting thread for what is queued, unless that has been done for it."""
        with self._arrived:
            if self._added and not self._announced:
                self._announced = True
                self._change()

    def cancel(self, tickets: Iterable[Ticket]) -> None:
        """Drops the unfinished sequences among tickets; the running batch is not waited for."""
        with self._arrived:
            unfinished = [t.sequence for t in tickets if t.sequence in self._tickets]
            if unfinished:
                self._cancelled += unfinished
                self._change()

    @property
    def waiting(self) -> int:
        """The `work` of what is unfinished."""
        return self._waiting

    @property
    def running(self) -> bool:
        """Whether the threads take work: the first that ends, whyever, stops all."""
        return not self._stopping

    @property
    def why(self) -> str:
        """Why they do not."""
        return self._why

    def _forget(self, sequence: Sequence) -> None:
        """Nobody waits for its events any more."""
        if self._tickets.pop(sequence, None) is not None:
            self._waiting -= sequence.work

    def _change(self) -> None:
        """Wakes a thread that found nothing to do, if there is one."""
        self._changes += 1
        self._arrived.notify()

    def _main(self, part: Runner) -> None:
        try:
            while self._serve(part):
                pass
        except BaseException as error:  # nothing may wait for a thread that is gone
            expected = isinstance(error, EngineError)
            _log.error("engine stopped: %s", error, exc_info=not expected)
            named = str(error) if expected else f"{type(error).__name__}: {error}"
            self._why = f"the engine has stopped: {named}"
            self.metrics.engine_errors.inc()
        finally:
            with self._arrived:
                self._stopping = True
                self._arrived.notify_all()
                self._left -= 1
                last = not self._left
            if last:
                self._fail_all()

    def _serve(self, part: Runner) -> bool:
        """Runs the next batch, or waits until there may be one; False to stop."""
        with self._turn:
            seen = self._receive()
            if seen is None:
                return False
            picked = self.scheduler.pick()
            more = self.scheduler.ready
            alone = not self._busy and not more and _whole(picked, part.precision)
            self._busy += bool(picked)
        if more and picked:
            with self._arrived:
                self._change()
        if picked:
            self._step(picked, self.runner if alone else part)
        else:
            self._deliver()
            with self._arrived:
                self._arrived.wait_for(lambda: self._changes != seen or self._stopping)
        return True

    def _receive(self) -> int | None:
        """Hands what has arrived to the scheduler; the changes so far, None to stop."""
        with self._arrived:
            added, self._added = self._added, []
            self._announced = False
            cancelled, self._cancelled = self._cancelled, []
            for sequence in cancelled:
                self._forget(sequence)
            if self._stopping:
                return None
            seen = self._changes
        for request, tickets in added:
            self.scheduler.add(request, [t.sequence for t in tickets])
        for sequence in cancelled:
            self.scheduler.cancel(sequence)
        return seen

    def _step(self, picked: list[Assignment], runner: Runner) -> None:
        events: list[tuple[Sequence, Event]] = []
        try:
            batch = planned(picked, runner)
            # now, since the runtime leaves the interpreter to those who wait for the events
            self._deliver()
            began = time.perf_counter()
            outputs = runner.run(batch)
            seconds = time.perf_counter() - began
            events += results(picked, outputs)
        except Exception as error:  # one bad batch must not end the server
            expected = isinstance(error, EngineError)
            _log.error("engine batch failed: %s", error, exc_info=not expected)
            self.metrics.engine_errors.inc()
            self._doubt(runner)
            message = str(error) if expected else "internal engine error"
            with self._turn:
                self._busy -= 1
                self._outbox += [(s, Failed(message)) for s in self.scheduler.drop(picked)]
            return
        failed = [sequence for sequence, event in events if isinstance(event, Failed)]
        if failed:
            _log.error("engine batch gave log-probabilities that are not finite numbers")
            self.metrics.engine_errors.inc()
            self._doubt(runner)
        with self._turn:
            for sequence in failed:
                self.scheduler.cancel(sequence)
            rows = sum(a.piece.rows for a in picked)
            self.scheduler.counts.dummy += len(batch.tokens) - rows
            self._count(len(batch.tokens), seconds)
            self._busy -= 1
            if not failed:
                self._failures = 0
            # in this order, before another thread can add what comes after these
            self._outbox += events
            self._outbox += [(s, Finished()) for s in self.scheduler.finish(picked)]

    def _doubt(self, runner: Runner) -> None:
        """Checks a runner if batches fail one after the other.

        A GPU that has died fails every batch, or computes no numbers, until a new process opens it.
        Raises EngineError then.
        The batch counts as running meanwhile, so that no other thread uses the runner.
        """
        with self._turn:
            self._failures += 1
            if self._failures < _FAILURES:
                return
            self._failures = 0
        try:
            runner.check()
        except EngineError as error:
            raise EngineError(f"{_FAILURES} batches failed, and {error}") from None

    def _count(self, rows: int, seconds: float) -> None:
        self.metrics.batch_rows.observe(rows)
        self.metrics.batch_seconds.observe(seconds)
        self.tokens_per_second += 0.1 * (self._busy * rows / seconds - self.tokens_per_second)
        now, before = self.scheduler.counts, self._counted
        for kind, counter in self._rows.items():
            if grown := getattr(now, kind) - getattr(before, kind):
                counter.inc(grown)
        self._counted = RowCounts(now.score, now.prefill, now.decode, now.halo, now.dummy)

    def _deliver(self) -> None:
        """Hands over all events there are, in the order in which they were added."""
        with self._turn:
            events, self._outbox = self._outbox, []
            by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, Event]]] = {}
            with self._arrived:
                for sequence, event in events:
                    if sequence not in self._tickets:
                        continue
                    loop, ticket = self._tickets[sequence]
                    ticket.held.append(event)
                    last = isinstance(event, Failed | Finished)
                    if last or len(ticket.held) >= _together(sequence):
                        by_loop.setdefault(loop, []).extend((ticket, e) for e in ticket.held)
                        ticket.held.clear()
                    if last:
                        self._forget(sequence)
            for loop, arrived in by_loop.items():
                with suppress(RuntimeError):  # a loop that has closed: nobody waits there
                    loop.call_soon_threadsafe(_hand_over, arrived)

    def _fail_all(self) -> None:
        with self._arrived:
            left = list(self._tickets)
        with self._turn:
            # what came before goes first, so nobody is told of a stop who has all
            self._outbox += [(s, Failed(self._why, stopped=True)) for s in left]
        self._deliver()


def planned(picked: list[Assignment], runner: Runner) -> FlatBatch:
    """The batch of some pieces, for a runner."""
    drawn = draws(picked) if runner.clusters else []
    tails = tail_terms(drawn, runner.clusters) if drawn else None
    return plan([a.piece for a in picked], runner.taps, runner.multiple, tails)


def _whole(picked: list[Assignment], precision: Precision) -> bool:
    """Whether a batch that is alone should have all threads. Many short texts are not one client's:
    the cores they leave free are needed to read the next requests. In 8 bits few rows are no faster
    on several."""
    if all(a.sequence.streaming for a in picked):
        return precision == "float32"
    return len(picked) == 1 and (precision != "int8" or picked[0].piece.rows >= _WHOLE_ROWS)


def _together(sequence: Sequence) -> int:
    return sequence.follow.together if isinstance(sequence.follow, Generation) else 1


def _hand_over(arrived: list[tuple[Ticket, Event]]) -> None:
    for ticket, event in arrived:
        ticket.events.put_nowait(event)
