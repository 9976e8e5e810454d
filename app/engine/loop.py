"""The engine's threads, and the way between them and asyncio: pick, plan, run, deliver."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import replace

from app.engine.batches import Assignment, Runner, flat_batch, gets_all_cores, results
from app.engine.policy import POLICY
from app.engine.rate import BatchWork, Rate, work_of
from app.engine.retry import divisible
from app.engine.scheduler import Scheduler
from app.engine.sequence import Event, Failed, Finished, Sequence
from app.engine.tickets import Outstanding, Ticket
from app.engine.turns import CallerQueue
from app.engine.watch import BatchWatch
from app.errors import STOPPING, EngineError, NoMemoryError, NotReadyError
from app.metrics import Metrics

_log = logging.getLogger(__name__)


class EngineLoop:
    """Runs a scheduler's batches on threads and delivers events to asyncio.

    A thread for each of `shares`, runners that have a share of the cores each: while one batch
    runs, the next is planned and the last one's results are read on another thread. A text or
    streams run on `all_cores` while nothing else runs, unless they would be no faster
    (`gets_all_cores`); so do all batches if there are no shares.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        all_cores: Runner,
        metrics: Metrics,
        shares: Collection[Runner] = (),
        rate: Rate | None = None,
        max_batch_seconds: float = math.inf,
    ) -> None:
        self.scheduler, self.runner, self.metrics = scheduler, all_cores, metrics
        self.rate = rate or Rate()
        self._arrived = threading.Condition()  # guards `_added` to `why`
        self._added: list[tuple[CallerQueue, list[Ticket]]] = []
        self._cancelled: list[Sequence] = []
        self._tickets: dict[Sequence, tuple[asyncio.AbstractEventLoop, Ticket]] = {}
        self.waiting = 0
        """The `work` of all unfinished sequences."""
        self.outstanding = Outstanding()
        self.retry_seconds: Callable[[CallerQueue, int], int] = lambda *_: 1
        """As `Admission.retry_seconds_of`."""
        self._changes = 0
        self._announced = False
        self.running = True
        """Whether the engine accepts work. If any thread ends, all stop."""
        self.why = STOPPING
        """The error of work that is refused or left over."""
        self._turn = threading.Lock()  # guards `_running_batches` to `_outbox` and scheduler
        self._running_batches = 0
        self._failures = 0
        """Failed batches since the last that succeeded."""
        self._counted = replace(scheduler.counts)
        self._outbox: list[tuple[Sequence, Event]] = []
        kinds = ("score", "prefill", "decode", "halo", "dummy")
        self._rows = {kind: metrics.rows.labels(kind) for kind in kinds}
        self._threads = [
            threading.Thread(target=self._main, args=(n, share), name=f"engine-{n}", daemon=True)
            for n, share in enumerate(shares or [all_cores])
        ]
        self.watch = BatchWatch(len(self._threads), max_batch_seconds)
        self.rate.workers = self._threads_left = len(self._threads)

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Makes the threads end after the running batches; all other work fails."""
        with self._arrived:
            self.running = False
            self._arrived.notify_all()

    def stop(self) -> bool:
        """As `end`, and waits for the threads. Returns whether they ended: not if a batch is late,
        since nothing can end it."""
        self.end()
        ended = [self.watch.join(thread) for thread in self._threads]
        return all(ended)

    def abandon(self, why: str) -> None:
        """As `end`, and fails all work now instead of when the running batches have ended."""
        self.why = why
        self.end()
        self._fail_rest()

    def submit(self, queue: CallerQueue, tickets: list[Ticket]) -> None:
        """Queues a caller's tickets. Raises NotReadyError if the engine accepts no more work.

        A waiting thread is woken once for all that one iteration of the event loop queues: rows
        cost more in batches of few rows.
        """
        loop = asyncio.get_running_loop()
        with self._arrived:
            if not self.running:
                raise NotReadyError(self.why)
            self._tickets.update({t.sequence: (loop, t) for t in tickets})
            self.waiting += sum(t.sequence.work for t in tickets)
            self.outstanding.add(queue, tickets, self.scheduler.halo)
            self._added.append((queue, tickets))
            queue.since = min(queue.since, time.monotonic())
        loop.call_soon(self._announce)

    def _announce(self) -> None:
        """Wakes a waiting thread for queued work, once for all that has been queued."""
        with self._arrived:
            if self._added and not self._announced:
                self._announced = True
                self._change()

    def cancel(self, tickets: Iterable[Ticket]) -> None:
        """Cancels the unfinished sequences among tickets, without waiting for a running batch."""
        with self._arrived:
            unfinished = [t for t in tickets if t.sequence in self._tickets]
            if unfinished:
                for ticket in unfinished:
                    self.outstanding.remove(ticket)
                self._cancelled += [ticket.sequence for ticket in unfinished]
                self._change()

    def wake(self) -> None:
        """Makes a waiting thread look again: a stalled stream may go on."""
        with self._arrived:
            self._change()

    def _forget(self, sequence: Sequence) -> None:
        """Delivers no more events of a sequence."""
        entry = self._tickets.pop(sequence, None)
        if entry is not None:
            self.waiting -= sequence.work
            self.outstanding.remove(entry[1])

    def _change(self) -> None:
        """Wakes a thread that had nothing to do, if there is one."""
        self._changes += 1
        self._arrived.notify()

    def _main(self, number: int, share: Runner) -> None:
        try:
            while (batch := self._next_batch(share)) is not None:
                self.watch.begin(number)
                self._run(*batch)
                self.watch.end(number)
        except BaseException as error:  # no caller may wait for a thread that has ended
            expected = isinstance(error, EngineError)
            _log.error("engine stopped: %s", error, exc_info=not expected)
            named = str(error) if expected else f"{type(error).__name__}: {error}"
            self.why = f"the engine has stopped: {named}"
            self.metrics.engine_errors.inc()
        finally:
            self.watch.end(number)
            self._end_thread()

    def _end_thread(self) -> None:
        self.end()
        with self._arrived:
            self._threads_left -= 1
            if self._threads_left:
                return
        self._fail_rest()

    def _fail_rest(self) -> None:
        """Fails all work that is left."""
        with self._arrived:
            left = list(self._tickets)
        with self._turn:
            # earlier events go first: a caller whose work is complete gets its results
            self._outbox += [(s, Failed(self.why, stopped=True)) for s in left]
        self._deliver()

    def _next_batch(self, share: Runner) -> tuple[list[Assignment], Runner, BatchWork] | None:
        """Waits for rows to run; returns their pieces, what runs them, and their part in the rate.
        None to stop."""
        while True:
            began = time.perf_counter()
            with self._turn:
                changes = self._receive()
                if changes is None:
                    return None
                self._expire()
                picked = (scheduler := self.scheduler).pick()
                self.outstanding.count_blocked(scheduler.prompts, scheduler.bulk_prompts)
                others_waiting = scheduler.ready
                work = BatchWork(work_of(picked), others_waiting and scheduler.full, began)
                nothing_else_runs = not self._running_batches and not others_waiting
                all_cores = nothing_else_runs and gets_all_cores(picked, share.precision)
                self._running_batches += bool(picked)
            if picked:
                if others_waiting:
                    with self._arrived:
                        self._change()
                return picked, self.runner if all_cores else share, work
            self._deliver()
            with self._arrived:
                while self._changes == changes and self.running:
                    self._arrived.wait()

    def _receive(self) -> int | None:
        """Passes arrivals to the scheduler; returns the changes so far, None to stop."""
        with self._arrived:
            added, self._added = self._added, []
            self._announced = False
            cancelled, self._cancelled = self._cancelled, []
            for sequence in cancelled:
                self._forget(sequence)
            if not self.running:
                return None
            changes = self._changes
        for queue, tickets in added:
            self.scheduler.add(queue, [t.sequence for t in tickets])
        for sequence in cancelled:
            self.scheduler.cancel(sequence)
        return changes

    def _expire(self) -> None:
        """Fails what has had no row in time, as if it had been refused at once."""
        expired = self.scheduler.expire()
        callers = {s.caller for s in expired if s.caller is not None}
        if not callers:
            return
        gone = sum(caller.outstanding for caller in callers)
        seconds = {caller: self.retry_seconds(caller, gone) for caller in callers}
        limit = self.scheduler.unserved.max_seconds
        message = f"the work had no row within max_queue_seconds, {limit:g}; try again later"
        self.metrics.rejected.labels("expired").inc(len(callers))
        for s in expired:
            assert s.caller is not None
            self._outbox.append((s, Failed(message, retry_seconds=seconds[s.caller])))

    def _run(self, picked: list[Assignment], runner: Runner, work: BatchWork) -> None:
        try:
            batch = flat_batch(picked, runner)
            # now: ONNX Runtime releases the GIL, so event loops can read the events
            self._deliver()
            began = time.perf_counter()
            outputs = runner.run(batch)
            seconds = time.perf_counter() - began
            events = results(picked, outputs)
        except Exception as error:  # one bad batch must not end the server
            self._fail(picked, runner, error)
        else:
            self._count(picked, len(batch.tokens), seconds, work)
            self._finish(picked, runner, events)

    def _fail(self, picked: list[Assignment], runner: Runner, error: Exception) -> None:
        """Has a batch that raised an error run again in halves; fails a sequence that was alone."""
        expected = isinstance(error, EngineError)
        memory = isinstance(error, MemoryError | NoMemoryError)
        unknown = not (expected or memory)
        _log.error("engine batch failed sequences=%d: %s", len(picked), error, exc_info=unknown)
        self.metrics.engine_errors.inc()
        if not (memory and divisible(picked, memory=True)):  # else the device is only too small
            self._check_after_failures(runner)
        message = str(error) if expected else "internal engine error"
        with self._turn:
            self._running_batches -= 1
            failed = self.scheduler.retry(picked, memory=memory)
            self._outbox += [(s, Failed(message)) for s in failed]
        self.metrics.failed_sequences.inc(len(failed))
        self.metrics.retried_batches.inc(not failed)

    def _finish(
        self, picked: list[Assignment], runner: Runner, events: list[tuple[Sequence, Event]]
    ) -> None:
        """Ends the run of a batch with its events."""
        failed = [sequence for sequence, event in events if isinstance(event, Failed)]
        if failed:
            _log.error("engine batch gave log-probabilities that are not finite numbers")
            self.metrics.engine_errors.inc()
            self.metrics.failed_sequences.inc(len(failed))
            self._check_after_failures(runner)
        with self._turn:
            for sequence in failed:
                self.scheduler.cancel(sequence)
            self._running_batches -= 1
            if not failed:
                self._failures = 0
            # in this order, before another thread can add later events of these sequences
            self._outbox += events
            self._outbox += [(s, Finished()) for s in self.scheduler.finish(picked)]

    def _check_after_failures(self, runner: Runner) -> None:
        """Checks a runner after several failed batches in a row. Raises EngineError.

        A GPU that has died fails every batch, or computes no numbers, until a new process opens it.
        The batch still counts as running during the check, so that no other thread uses the runner.
        """
        with self._turn:
            self._failures += 1
            if self._failures < POLICY.failures:
                return
            self._failures = 0
        try:
            runner.check()
        except EngineError as error:
            raise EngineError(f"{POLICY.failures} batches failed, and {error}") from None

    def _count(self, picked: list[Assignment], rows: int, seconds: float, work: BatchWork) -> None:
        """Counts a batch of so many rows, dummies among them, which ran for so many seconds."""
        self.metrics.batch_rows.observe(rows)
        self.metrics.batch_seconds.observe(seconds)
        with self._turn:
            self.rate.count(work, time.perf_counter())
            now, before = self.scheduler.counts, self._counted
            now.dummy += rows - sum(a.piece.rows for a in picked)
            for kind, counter in self._rows.items():
                if more := getattr(now, kind) - getattr(before, kind):
                    counter.inc(more)
            self._counted = replace(now)

    def _deliver(self) -> None:
        """Delivers the events of the outbox, in order, to the event loops that wait for them."""
        with self._turn:
            events, self._outbox = self._outbox, []
            by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, Event]]] = {}
            with self._arrived:
                for sequence, event in events:
                    if sequence not in self._tickets:
                        continue
                    loop, ticket = self._tickets[sequence]
                    self.outstanding.count_done(ticket, event)
                    if due := ticket.hold(event):
                        by_loop.setdefault(loop, []).extend((ticket, e) for e in due)
                    if isinstance(event, Failed | Finished):
                        self._forget(sequence)
            for loop, due_events in by_loop.items():
                with suppress(RuntimeError):  # the event loop is closed
                    loop.call_soon_threadsafe(_put, due_events)


def _put(events: list[tuple[Ticket, Event]]) -> None:
    for ticket, event in events:
        ticket.events.put_nowait(event)
