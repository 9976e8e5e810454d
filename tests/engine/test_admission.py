"""What is taken, and what is said of the time after which it would be."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine import admission as module
from app.engine.admission import ADMITTED_SHARE, Admission
from app.engine.engine import Engine
from app.engine.loop import EngineLoop
from app.engine.policy import Budget
from app.engine.rate import BatchWork, Rate
from app.engine.scheduler import Scheduler
from app.engine.sequence import Failed, Finished, Sequence
from app.errors import OverloadError
from app.metrics import Metrics
from tests.engine.test_loop import Gated, drained
from tests.engine.test_scheduler import FakeSession, R, stream, text

pytestmark = pytest.mark.anyio

LIMIT = 10.0


def engine(due: int = 0, rate: float = 1000.0, bulk: int = 0, large: Any = ()) -> Any:
    return SimpleNamespace(
        due=due, bulk_due=bulk, tokens_per_second=rate, large=set(large), loops=[]
    )


class Large:
    """A request of which `due` tokens are with the engine, and others to come."""

    def __init__(self, due: int, unsubmitted: int, *, bulk: bool = False) -> None:
        self.due, self.unsubmitted, self.bulk = due, unsubmitted, bulk


def wait_for(engine: Any, tokens: int, *, bulk: bool = False) -> int:
    """Seconds after which a request of so many tokens is told to come again; 0 if it is taken."""
    try:
        Admission(engine, LIMIT / ADMITTED_SHARE, Metrics()).admit(tokens, bulk=bulk)
    except OverloadError as error:
        return error.retry_seconds
    return 0


@given(st.integers(0, 10**6), st.integers(1, 10**6), st.integers(1, 10**5))
def test_after_the_time_that_a_refusal_names_and_not_long_before_it_is_taken(
    due: int, tokens: int, rate: int
) -> None:
    seconds = wait_for(engine(due, rate), tokens)
    left = max(0, due - seconds * rate)
    assert wait_for(engine(left, rate), tokens) == 0
    if seconds > 1:
        assert wait_for(engine(due - (seconds - 2) * rate, rate), tokens) > 0


def test_a_queue_that_stays_full_is_held_short_until_the_overload_is_over() -> None:
    now = 0.0
    crowd = engine(due=int(LIMIT * 1000))
    admission = Admission(crowd, LIMIT / ADMITTED_SHARE, Metrics(), lambda: now)

    def taken(seconds: float) -> bool:
        crowd.due = int(seconds * 1000)
        with suppress(OverloadError):
            admission.admit(1, bulk=False)
            return True
        return False

    assert taken(9)  # a burst may fill the queue
    now = 60.0
    assert taken(9)  # which is no overload however long it stays
    assert not taken(10)
    assert taken(9)
    now = 70.0
    assert not taken(9)  # but a full one is, after a time
    assert not taken(3)
    assert taken(2)
    now = 1000.0
    assert not taken(3)
    assert taken(0.4)  # it is over
    assert taken(9)


def test_a_request_of_any_size_is_taken_when_nothing_waits() -> None:
    assert wait_for(engine(0), 10**9) == 0
    assert wait_for(engine(1), 10**9) == 1


def test_bulk_does_not_count_for_interactive_requests_which_count_for_bulk() -> None:
    crowd = engine(due=50_000, bulk=50_000)
    assert wait_for(crowd, 7000) == 0
    assert wait_for(crowd, 7000, bulk=True) > 0
    assert wait_for(engine(due=10_000), 1, bulk=True) == 1


def test_beside_bulk_an_interactive_request_has_three_quarters_of_the_rate() -> None:
    assert wait_for(engine(due=7000 + 500, bulk=500), 400) == 0
    assert wait_for(engine(due=7000 + 500, bulk=500), 600) == 1


def test_one_large_request_leaves_half_of_the_queue_to_others() -> None:
    large = Large(due=30_000, unsubmitted=900_000)
    assert wait_for(engine(due=30_000, large=[large]), 4000) == 0
    assert wait_for(engine(due=34_000, large=[large]), 1500) > 0
    # another large one must wait until most of the first is done
    assert wait_for(engine(due=30_000, large=[large]), 6000) == math.ceil(930 - 4)


def test_a_large_request_that_nobody_reads_keeps_nobody_out() -> None:
    unread = Large(due=0, unsubmitted=900_000)
    assert wait_for(engine(large=[unread]), 9000) == 0
    assert wait_for(engine(large=[unread]), 10**6) == 0


def test_the_rate_is_that_of_full_batches_on_all_workers() -> None:
    rate = Rate(1000.0, workers=2)
    for second in range(100):  # few requests: all are done at once
        rate.count(BatchWork(10, full=False, began=second), second + 0.9)
    assert rate.per_second == 1000.0
    for tenth in range(100):
        rate.count(BatchWork(250, full=True, began=0.1 * tenth), 0.1 * tenth + 0.1)
    assert rate.per_second == pytest.approx(5000, rel=0.01)
    for tenth in range(60):
        rate.count(BatchWork(25, full=True, began=0.1 * tenth), 0.1 * tenth + 0.1)
    assert rate.per_second == pytest.approx(500, rel=0.5)


def test_a_batch_that_hangs_does_not_keep_the_queue_short_once_it_is_over() -> None:
    rate = Rate(30_000.0)
    for _ in range(100):
        rate.count(BatchWork(300, full=True, began=0.0), 0.01)
    rate.count(BatchWork(300, full=True, began=0.0), 8.0)
    assert rate.per_second > 10_000
    for _ in range(200):  # two seconds
        rate.count(BatchWork(300, full=True, began=0.0), 0.01)
    assert rate.per_second > 25_000


def test_a_rate_at_which_nothing_is_admitted_rises_with_the_first_small_batches() -> None:
    rate = Rate(1000.0, workers=2)
    for _ in range(1000):
        rate.count(BatchWork(0, full=True, began=0.0), 8.0)
    assert rate.per_second == 1.0
    rates = []
    for _ in range(100):
        rate.count(BatchWork(60, full=False, began=0.0), 0.01)
        rates.append(rate.per_second)
    assert all(before <= after for before, after in pairwise(rates))
    assert 1500 < rates[-1] <= 3000


def test_small_lines_do_not_pass_a_large_one_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = engine(due=5000, bulk=5000)
    monkeypatch.setattr(module, "_MAX_PAUSE_SECONDS", 0.001)
    admission = Admission(crowd, LIMIT / ADMITTED_SHARE, Metrics())
    served: list[int] = []

    async def submit(tokens: int) -> None:
        await admission.wait_for_room(tokens, bulk=True)
        served.append(tokens)
        crowd.bulk_due += tokens

    async def check() -> None:
        async with asyncio.TaskGroup() as tasks:
            for tokens in (10**6, 1, 2, 3):
                tasks.create_task(submit(tokens))
            await asyncio.sleep(0.05)
            assert not served
            await admission.wait_for_room(10**6, bulk=False)  # those are others
            crowd.bulk_due = 0
            while not served:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.05)
            assert served == [10**6]
            crowd.bulk_due -= 10**6
        assert served == [10**6, 1, 2, 3]

    asyncio.run(check())


def test_lines_that_give_up_hold_nobody_back() -> None:
    crowd = engine(due=10_000, bulk=10_000)
    admission = Admission(crowd, LIMIT / ADMITTED_SHARE, Metrics())

    async def check() -> None:
        first, second, third = (
            asyncio.create_task(admission.wait_for_room(tokens, bulk=True))
            for tokens in (10**6, 10**6, 1)
        )
        await asyncio.sleep(0)
        crowd.bulk_due = 100
        second.cancel()
        first.cancel()
        await asyncio.wait_for(third, 60)

    asyncio.run(check())


def test_a_refusal_before_the_body_is_read_is_about_its_size() -> None:
    def refused(due: int, tokens: int) -> int:
        try:
            Admission(engine(due), LIMIT / ADMITTED_SHARE, Metrics()).check(lambda: tokens)
        except OverloadError as error:
            return error.retry_seconds
        return 0

    assert refused(9999, 10**6) == 0
    assert refused(10_000, 1) == 1
    assert refused(12_000, 5000) == 7
    assert refused(12_000, 10**6) == 12


class Unmeasured(Rate):
    """Keeps its value."""

    def count(self, batch: BatchWork, now: float) -> None:
        pass


async def test_what_is_dropped_is_told_the_time_after_which_it_would_be_taken() -> None:
    gated = Gated()
    scheduler = Scheduler(R, Budget(16, 16), 8, max_queue_seconds=0.05)
    loop = EngineLoop(scheduler, gated, Metrics())
    engine = Engine([loop])
    Admission(engine, LIMIT / ADMITTED_SHARE, Metrics())
    loop.rate = Unmeasured(10.0)
    loop.start()
    async with engine.caller() as running, engine.caller() as waiting:
        running.submit([Sequence(np.zeros(1001, np.int64))])
        while not gated.rows:
            await asyncio.sleep(0.01)
        (late,) = waiting.submit([text(50)])
        await asyncio.sleep(0.1)
        gated.allowed.release()
        event = await late.events.get()
        assert isinstance(event, Failed)
        # once, and not with the rows that are dropped; the first batch is not delivered yet
        assert event.retry_seconds == (1000 + 50 - LIMIT * 10) / 10
    gated.allowed.release(1000)
    loop.stop()


async def test_prompts_that_wait_for_a_slot_keep_nobody_out() -> None:
    loop = EngineLoop(Scheduler(R, Budget(64, 64), 4), FakeSession(), Metrics())
    engine = Engine([loop])
    loop.start()
    async with engine.caller() as unread, engine.caller() as other:
        unread.submit([stream(10_000) for _ in range(100)])
        while len(loop.scheduler.streams) < 2 or engine.due:
            await asyncio.sleep(0.01)
        assert loop.outstanding.due > 50 * R
        (ticket,) = other.submit([text(5)])
        assert isinstance((await drained(ticket))[-1], Finished)
    loop.stop()
