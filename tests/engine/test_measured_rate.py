"""The rate that a running engine measures, with runners of a known speed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from app.engine.batches import flat_batch
from app.engine.engine import Engine
from app.engine.loop import EngineLoop
from app.engine.policy import Budget
from app.engine.rate import Rate, work_of
from app.engine.runtime.outputs import Outputs
from app.engine.scheduler import Scheduler
from app.engine.tickets import Outstanding, Ticket
from app.engine.turns import CallerQueue
from app.metrics import Metrics
from model.core.flat_batch import FlatBatch
from tests.engine.test_loop import drained
from tests.engine.test_scheduler import FakeSession, R, settle, stream, text
from tests.engine.test_scheduler_properties import after, choices

pytestmark = pytest.mark.anyio
ROWS_PER_SECOND = 4000.0
"""Of one worker; two do 8,000."""


class Slow(FakeSession):
    """Takes its time for each row."""

    def run(self, batch: FlatBatch) -> Outputs:
        time.sleep(len(batch.tokens) / ROWS_PER_SECOND)
        return super().run(batch)


@pytest.fixture
def engine() -> Iterator[EngineLoop]:
    scheduler = Scheduler(R, Budget(128, 64, 64), 100, workers=2)
    made = EngineLoop(scheduler, Slow(), Metrics(), [Slow(), Slow()], Rate(6000.0))
    made.start()
    yield made
    made.stop()


async def _load(engine: EngineLoop, clients: int, requests: int, one: str) -> None:
    """So many clients that send so many requests each, one after the other."""

    async def client() -> None:
        for _ in range(requests):
            async with Engine([engine]).caller() as caller:
                (ticket,) = caller.submit([text(10) if one == "text" else stream(1, prompt=9)])
                await drained(ticket)

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())


async def test_a_light_load_does_not_lower_the_rate(engine: EngineLoop) -> None:
    await _load(engine, clients=5, requests=30, one="text")
    assert engine.rate.per_second >= 6000


@pytest.mark.parametrize("one", ["text", "prompt"])
async def test_under_load_the_rate_is_what_all_workers_do(engine: EngineLoop, one: str) -> None:
    engine.rate = Rate(400.0, workers=2)
    await _load(engine, clients=80, requests=8, one=one)
    assert 4000 < engine.rate.per_second < 10_000


async def test_the_work_of_batches_is_what_their_sequences_have_due() -> None:
    made = Scheduler(R, Budget(32, 16), 2)
    outstanding, caller = Outstanding(), CallerQueue()
    sequences = [after(20, 40, kind) for kind in ("text", "next", "named", "prompt", "echo")]
    sequences += choices(9, 5)  # they have no slots, so that some compute halos
    tickets = {sequence: Ticket(sequence, asyncio.Queue()) for sequence in sequences}
    outstanding.add(caller, tickets.values(), R - 1)
    made.add(caller, sequences)
    due, work = outstanding.due, 0
    while picked := made.pick():
        work += work_of(picked)
        outputs = FakeSession().run(flat_batch(picked, FakeSession()))
        for sequence, event in settle(made, picked, outputs):
            outstanding.count_done(tickets[sequence], event)
            sequence.tokens_read = len(sequence.generated)
    assert outstanding.due == 0
    assert work == due
