"""A batch that takes too long is told of, and one that never ends is left behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from app.engine.engine import Engine
from app.engine.loop import EngineLoop
from app.engine.policy import Budget
from app.engine.runtime.outputs import Outputs
from app.engine.scheduler import Scheduler
from app.engine.sequence import Failed, Finished
from app.errors import LateBatchError, NotReadyError
from app.metrics import Metrics
from model.core.flat_batch import FlatBatch
from tests.engine.test_loop import drained
from tests.engine.test_scheduler import FakeSession, text

pytestmark = pytest.mark.anyio
LATE_SECONDS = 0.02


class Hanging(FakeSession):
    """Runs no batch until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def run(self, batch: FlatBatch) -> Outputs:
        assert self.go.wait(60)
        return super().run(batch)


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    made = Hanging()
    yield made
    made.go.set()


@pytest.fixture
def engine(hanging: Hanging) -> Iterator[Engine]:
    loop = EngineLoop(
        Scheduler(5, Budget(16, 16), 8), hanging, Metrics(), max_batch_seconds=LATE_SECONDS
    )
    made = Engine([loop])
    made.start()
    yield made
    hanging.go.set()
    made.end()
    for thread in loop._threads:
        thread.join()


async def until_late(engine: Engine) -> str:
    while True:
        try:
            engine.check()
        except LateBatchError as error:
            return str(error)
        await asyncio.sleep(0.005)


async def test_an_engine_is_not_ready_while_a_batch_is_late(
    engine: Engine, hanging: Hanging
) -> None:
    assert engine.oldest_batch_seconds == 0
    async with engine.caller() as caller:
        (ticket,) = caller.submit([text(5)])
        assert f"longer than max_batch_seconds, {LATE_SECONDS:g}" in await until_late(engine)
        assert engine.oldest_batch_seconds > LATE_SECONDS
        (waiting,) = caller.submit([text(6)])  # of a request that goes on
        hanging.go.set()
        for each in (ticket, waiting):
            assert isinstance((await drained(each))[-1], Finished)
    while engine.oldest_batch_seconds:
        await asyncio.sleep(0.005)
    engine.check()


async def test_an_engine_whose_batch_never_ends_is_left_and_its_work_fails(
    engine: Engine, hanging: Hanging, caplog: pytest.LogCaptureFixture
) -> None:
    async with engine.caller() as caller:
        tickets = caller.submit([text(5), text(300)])
        while engine.running:
            engine.end_if_hung()
            await asyncio.sleep(0.005)
        for ticket in tickets:
            (failed,) = await drained(ticket)
            assert isinstance(failed, Failed)
            assert failed.stopped
            assert "max_batch_seconds" in failed.message
        with pytest.raises(NotReadyError, match="the engine has stopped: a batch"):
            caller.submit([text(3)])
    assert not await asyncio.to_thread(engine.stop)
    told = [record.message for record in caplog.records]
    assert [message.split(":")[0] for message in told] == ["engine not ready", "engine stopped"]
    hanging.go.set()  # it ends after all, and disturbs nobody


async def test_a_late_batch_holds_up_no_stop(engine: Engine) -> None:
    async with engine.caller() as caller:
        tickets = caller.submit([text(5), text(300)])
        await until_late(engine)
        engine.end()
        for ticket in tickets:
            assert await drained(ticket) == [Failed("the server is stopping", stopped=True)]
        assert not await asyncio.to_thread(engine.stop)


async def test_a_batch_that_was_late_and_ended_is_told_of_once(
    engine: Engine, hanging: Hanging, caplog: pytest.LogCaptureFixture
) -> None:
    (watch,) = (loop.watch for loop in engine.loops)
    async with engine.caller() as caller:
        (ticket,) = caller.submit([text(5)])
        await until_late(engine)
        for _ in range(3):
            watch.hangs()
        hanging.go.set()
        await drained(ticket)
        while watch.seconds:
            await asyncio.sleep(0.005)
        for _ in range(3):
            assert not watch.hangs()
    told = [record.message.split(":")[0] for record in caplog.records]
    assert told == ["engine not ready", "engine batch has ended at last"]
