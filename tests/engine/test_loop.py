"""The engine's thread: delivery, cancellation, faults, stopping."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from app.engine.batches import gets_all_cores
from app.engine.engine import Engine
from app.engine.loop import EngineLoop, Ticket
from app.engine.policy import Budget
from app.engine.runtime.outputs import Outputs
from app.engine.scheduler import Scheduler
from app.engine.sequence import (
    Event,
    Failed,
    Finished,
    Generated,
    Generation,
    Scored,
    Sequence,
)
from app.engine.turns import CallerQueue
from app.errors import EngineError, NotReadyError
from app.metrics import Metrics
from model.core.flat_batch import FlatBatch
from tests.engine.test_scheduler import GREEDY, FakeSession, step, stream, text

pytestmark = pytest.mark.anyio


class Gated(FakeSession):
    """Runs a batch when allowed to; fails on a batch that holds token 9."""

    def __init__(self) -> None:
        self.allowed = threading.Semaphore(0)
        self.rows: list[int] = []

    def run(self, batch: FlatBatch) -> Outputs:
        self.rows.append(len(batch.tokens))
        assert self.allowed.acquire(timeout=30)
        if 9 in batch.tokens:
            raise EngineError("a batch with 9")
        return super().run(batch)


@pytest.fixture
def gated() -> Gated:
    return Gated()


@pytest.fixture
def engine(gated: Gated) -> Iterator[EngineLoop]:
    made = EngineLoop(Scheduler(5, Budget(16, 16), 8), gated, Metrics())
    made.start()
    yield made
    gated.allowed.release(1000)
    made.stop()


async def drained(ticket: Ticket) -> list[Event]:
    events = [await ticket.events.get()]
    while not isinstance(events[-1], Finished | Failed):
        events.append(await ticket.events.get())
    return events


@pytest.mark.parametrize(
    ("waiting", "float32", "int8"),
    [
        ([text(255)], True, False),
        ([text(256)], True, True),
        ([text(200), text(200)], False, False),
        ([stream(5)], True, False),  # its prompt
    ],
)
def test_a_text_alone_has_all_threads_in_8_bits_from_so_many_rows_on(
    waiting: list[Sequence], float32: bool, int8: bool
) -> None:
    made = Scheduler(5, Budget(512, 512), 8)
    for one in waiting:
        made.add(CallerQueue(), [one])
    picked = made.pick()
    assert gets_all_cores(picked, "float32") == float32
    assert gets_all_cores(picked, "int8") == int8


def test_streams_alone_have_all_threads_in_float32() -> None:
    made = Scheduler(5, Budget(512, 512), 8)
    made.add(CallerQueue(), [stream(5), stream(5)])
    step(made)
    picked = made.pick()
    assert len(picked) == 2
    assert gets_all_cores(picked, "float32")
    assert not gets_all_cores(picked, "int8")


async def test_events_arrive_in_order(engine: EngineLoop, gated: Gated) -> None:
    gated.allowed.release(100)
    async with Engine([engine]).caller() as caller:
        tickets = caller.submit([text(8), Sequence(np.arange(9))])
        for ticket in tickets:
            events = await drained(ticket)
            got = np.concatenate([e.logprobs for e in events if isinstance(e, Scored)])
            np.testing.assert_array_equal(got, -ticket.sequence.tokens[1:].astype(np.float32))


async def test_what_one_turn_of_the_event_loop_queues_shares_a_batch(
    engine: EngineLoop, gated: Gated
) -> None:
    gated.allowed.release(100)
    async with Engine([engine]).caller() as first, Engine([engine]).caller() as second:
        tickets = first.submit([text(4)])
        time.sleep(0.1)  # the idle thread could begin now
        tickets += second.submit([text(6)])
        for ticket in tickets:
            assert isinstance((await drained(ticket))[-1], Finished)
    assert gated.rows == [4 + 6]


async def test_tokens_that_may_wait_come_in_lots_and_none_is_lost(
    engine: EngineLoop, gated: Gated
) -> None:
    generation = Generation(GREEDY, 7, frozenset(), together=3)
    sequence = Sequence(np.arange(4), score_from=3, follow=generation)
    async with Engine([engine]).caller() as caller:
        patient, eager = caller.submit([sequence, stream(7)])
        gated.allowed.release(2)
        for _ in range(2):
            assert isinstance(await eager.events.get(), Generated)
        assert patient.events.empty()
        gated.allowed.release(100)
        events = await drained(patient)
    assert [type(event) for event in events] == [Generated] * 7 + [Finished]
    assert [event.finish for event in events if isinstance(event, Generated)][-1] == "length"


async def test_a_failure_comes_behind_the_tokens_that_waited(
    engine: EngineLoop, gated: Gated
) -> None:
    generation = Generation(GREEDY, 1000, frozenset(), together=1000)
    sequence = Sequence(np.arange(4), score_from=3, follow=generation)
    async with Engine([engine]).caller() as caller:
        (patient,) = caller.submit([sequence])
        gated.allowed.release(5)
        while len(sequence.generated) < 5:
            await asyncio.sleep(0.01)
        sequence.generated.append(9)  # the next batch has a 9
        gated.allowed.release(100)
        *tokens, failed = await drained(patient)
    assert failed == Failed("a batch with 9")
    assert tokens
    assert all(isinstance(event, Generated) for event in tokens)


async def test_a_caller_that_leaves_takes_its_work_along(engine: EngineLoop, gated: Gated) -> None:
    async with Engine([engine]).caller() as caller:
        caller.submit([Sequence(np.ones(10_000, np.int64)), stream(10_000)])
        gated.allowed.release(2)
        await asyncio.sleep(0.05)
    gated.allowed.release(100)
    async with Engine([engine]).caller() as other:
        (ticket,) = other.submit([Sequence(np.ones(5, np.int64))])
        assert isinstance((await drained(ticket))[-1], Finished)
    assert gated.allowed._value > 90  # the work that was left was not run
    assert len(engine.scheduler.states.free) == 8


async def test_one_choice_can_be_dropped_while_others_go_on(
    engine: EngineLoop, gated: Gated
) -> None:
    gated.allowed.release(10**7)
    async with Engine([engine]).caller() as caller:
        endless, short = caller.submit([stream(10**9), stream(5)])
        await drained(short)
        caller.cancel(endless)
        (last,) = caller.submit([stream(5)])
        assert isinstance((await drained(last))[-1], Finished)
    while not engine.scheduler.idle:
        await asyncio.sleep(0.01)


async def test_a_batch_that_fails_takes_its_sequences_alone(
    engine: EngineLoop, gated: Gated
) -> None:
    async with Engine([engine]).caller() as caller:
        (bad,) = caller.submit([Sequence(np.full(5, 9))])
        gated.allowed.release(1)
        events = await drained(bad)
        assert events == [Failed("a batch with 9")]
        (good,) = caller.submit([Sequence(np.ones(5, np.int64))])
        gated.allowed.release(1)
        assert isinstance((await drained(good))[-1], Finished)
    assert engine.metrics.engine_errors._value.get() == 1


class Dying(FakeSession):
    """Fails on a batch that holds token 9, and on every batch once it holds token 8."""

    def __init__(self) -> None:
        self.dead = False
        self.checks = 0

    def run(self, batch: FlatBatch) -> Outputs:
        self.dead |= 8 in batch.tokens
        if self.dead or 9 in batch.tokens:
            raise EngineError("an illegal memory access")
        return super().run(batch)

    def check(self) -> None:
        self.checks += 1
        if self.dead:
            raise EngineError("golden texts fail")


async def test_a_device_that_has_died_ends_the_engine_at_the_third_batch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = EngineLoop(Scheduler(5, Budget(16, 16), 8), dying := Dying(), Metrics())
    engine.start()
    async with Engine([engine]).caller() as caller:
        for number in range(3):
            assert engine.running
            (ticket,) = caller.submit([Sequence(np.full(5, 8))])
            (failed,) = await drained(ticket)
            assert isinstance(failed, Failed)
            assert failed.stopped == (number == 2)
        with pytest.raises(NotReadyError, match="the engine has stopped"):
            caller.submit([text(3)])
    assert dying.checks == 1
    assert not engine.running
    (told,) = [r for r in caplog.records if "engine stopped" in r.message]
    assert told.message == "engine stopped: 3 batches failed, and golden texts fail"
    assert not told.exc_info
    engine.stop()


async def test_a_device_that_computes_no_numbers_ends_the_engine_at_the_third_batch() -> None:
    class Garbage(FakeSession):
        """Gives no number for any token, without an error."""

        def run(self, batch: FlatBatch) -> Outputs:
            outputs = super().run(batch)
            outputs.logprobs[:] = np.nan
            return outputs

        def check(self) -> None:
            raise EngineError("golden texts fail")

    engine = EngineLoop(Scheduler(5, Budget(16, 16), 8), Garbage(), Metrics())
    engine.start()
    async with Engine([engine]).caller() as caller:
        for _ in range(3):
            (ticket,) = caller.submit([text(3)])
            assert isinstance((await drained(ticket))[-1], Failed)
        with pytest.raises(NotReadyError, match="golden texts fail"):
            caller.submit([text(3)])
    assert not engine.running
    engine.stop()


async def test_batches_that_fail_on_a_device_that_lives_do_not_end_the_engine() -> None:
    engine = EngineLoop(Scheduler(5, Budget(16, 16), 8), dying := Dying(), Metrics())
    engine.start()
    async with Engine([engine]).caller() as caller:
        for bad in (9, 9, 1, 9, 9, 9, 9, 1):
            (ticket,) = caller.submit([Sequence(np.full(5, bad))])
            ending = Failed if bad == 9 else Finished
            assert isinstance((await drained(ticket))[-1], ending)
    assert dying.checks == 1  # at the third in a row without a success between
    assert engine.running
    engine.stop()


async def test_a_log_probability_that_is_no_number_ends_its_sequence_alone(
    engine: EngineLoop,
    gated: Gated,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = gated.run

    def faulty(batch: FlatBatch) -> Outputs:
        outputs = run(batch)
        outputs.logprobs[outputs.logprobs == -8] = np.nan
        return outputs

    monkeypatch.setattr(gated, "run", faulty)
    async with Engine([engine]).caller() as caller:
        good, bad = caller.submit([Sequence(np.ones(4, np.int64)), Sequence(np.full(4, 8))])
        gated.allowed.release(100)
        assert isinstance((await drained(good))[-1], Finished)
        (failed,) = await drained(bad)
        assert isinstance(failed, Failed)
        assert "no finite number" in failed.message
        assert gated.rows == [6]  # both in one batch
        (again,) = caller.submit([text(3)])
        assert isinstance((await drained(again))[-1], Finished)
    assert engine.metrics.engine_errors._value.get() == 1
    assert "not finite numbers" in caplog.text


@pytest.mark.parametrize("fault", [SystemExit, KeyboardInterrupt, MemoryError])
async def test_whatever_ends_a_thread_is_logged_and_named(
    fault: type[BaseException],
    gated: Gated,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(request: object, sequences: object) -> None:
        raise fault("a fault")

    engine = EngineLoop(Scheduler(5, Budget(16, 16), 8), gated, Metrics())
    monkeypatch.setattr(engine.scheduler, "add", broken)
    engine.start()
    async with Engine([engine]).caller() as caller:
        (ticket,) = caller.submit([text(3)])
        await drained(ticket)
    engine.stop()
    assert engine.why == f"the engine has stopped: {fault.__name__}: a fault"
    assert "Traceback" in caplog.text


async def test_a_fault_of_the_scheduler_leaves_nobody_waiting(
    gated: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(request: object, sequences: object) -> None:
        raise RuntimeError("a fault")

    engine = EngineLoop(Scheduler(5, Budget(16, 16), 8), gated, Metrics())
    monkeypatch.setattr(engine.scheduler, "add", broken)
    engine.start()
    assert engine.running
    why = "the engine has stopped: RuntimeError: a fault"
    async with Engine([engine]).caller() as caller:
        (ticket,) = caller.submit([text(3)])
        assert await drained(ticket) == [Failed(why, stopped=True)]
        with pytest.raises(NotReadyError, match=why):
            caller.submit([text(3)])
    assert not engine.running
    engine.stop()


async def test_stopping_fails_what_is_left_and_refuses_what_comes(gated: Gated) -> None:
    engine = EngineLoop(Scheduler(5, Budget(16, 16), 8), gated, Metrics())
    engine.start()
    async with Engine([engine]).caller() as caller:
        (ticket,) = caller.submit([stream(10**9)])
        gated.allowed.release(10**7)
        await ticket.events.get()
        await asyncio.to_thread(engine.stop)
        assert isinstance((await drained(ticket))[-1], Failed)
        with pytest.raises(NotReadyError):
            caller.submit([text(3)])
