"""Several loops behind one way in: who runs what, and that nobody can tell."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.engine import Caller, Engine
from app.engine.loop import EngineLoop, Ticket
from app.engine.policy import Budget
from app.engine.runtime.session import Session
from app.engine.sampling.draw import Sampling
from app.engine.scheduler import Scheduler
from app.engine.sequence import Finished, Generated, Generation, Scored, Sequence
from app.engine.shared_prefixes import Text, prefix_tree
from app.engine.turns import CallerQueue
from app.errors import NotReadyError
from app.metrics import Metrics
from model.core.bundle import Bundle
from model.core.graph import Floats, Indices
from tests.engine.test_loop import drained
from tests.engine.test_scheduler import FakeSession, stream, text

SLOTS = 12


class Watched(EngineLoop):
    """Remembers what it was given; runs nothing unless started."""

    def __init__(self) -> None:
        super().__init__(Scheduler(5, Budget(16, 16), 8), FakeSession(), Metrics())
        self.given: list[Sequence] = []

    def submit(self, queue: CallerQueue, tickets: list[Ticket]) -> None:
        self.given += [ticket.sequence for ticket in tickets]
        super().submit(queue, tickets)


async def submitted(*lots: list[Sequence], loops: int = 3) -> list[list[Sequence]]:
    """What each loop is given of lots that come one after the other."""
    made = [Watched() for _ in range(loops)]
    caller = Caller(Engine(made))
    for lot in lots:
        caller.submit(lot)
    return [loop.given for loop in made]


@given(st.lists(st.lists(st.integers(1, 300), max_size=12), max_size=6))
def test_work_goes_where_the_least_waits(lots: list[list[int]]) -> None:
    given_to = asyncio.run(submitted(*[[text(n) for n in lot] for lot in lots]))
    lengths = [n for lot in lots for n in lot]
    sums = [sum(sequence.work for sequence in share) for share in given_to]
    assert sorted(sequence.work for share in given_to for sequence in share) == sorted(
        n + 1 for n in lengths
    )
    assert max(sums) - min(sums) <= max((n + 1 for n in lengths), default=0)


def test_streams_are_spread_though_a_long_text_waits() -> None:
    streams = [stream(1000) for _ in range(60)]
    shares = asyncio.run(submitted([text(8000)], streams, loops=2))
    assert [len(share) for share in shares] == [1 + 26, 34]  # 26,000 and 8,000 against 34,000


def test_what_goes_on_from_a_state_goes_where_the_state_is() -> None:
    rng = np.random.default_rng(3)
    beginnings = [rng.integers(2, 400, 60) for _ in range(5)]
    texts = [
        Text(np.concatenate([begin, rng.integers(2, 400, 3 + n)]), 1)
        for begin in beginnings
        for n in range(8)
    ]
    distinct = {id(s): s for path in prefix_tree(texts, 0, 4) for s in path}
    sequences = list(distinct.values())
    parents = {id(s): s.parent for s in sequences if s.parent is not None}
    assert len(parents) > 20
    first, second = sequences[: len(sequences) // 2], sequences[len(sequences) // 2 :]
    shares = asyncio.run(submitted(first, second))
    homes = {id(s): n for n, share in enumerate(shares) for s in share}
    assert len(homes) == len(sequences)
    assert set(homes.values()) == {0, 1, 2}
    for child, parent in parents.items():
        assert homes[child] == homes[id(parent)]


@pytest.fixture
def engine(tiny: Bundle) -> Iterator[Engine]:
    """Two loops with real sessions, each with a pool."""
    made = []
    for _ in range(2):
        session = Session(tiny, "cpu", 1, SLOTS)
        scheduler = Scheduler(session.config.receptive_field, Budget(32, 16), SLOTS)
        made.append(EngineLoop(scheduler, session, Metrics()))
    engine = Engine(made)
    engine.start()
    yield engine
    engine.stop()


async def scores(engine: Engine, tokens: list[Indices]) -> list[Floats]:
    async with engine.caller() as caller:
        paths = prefix_tree([Text(ids, 1) for ids in tokens], 0, 6)
        distinct = list({id(s): s for path in paths for s in path}.values())
        tickets = dict(zip(map(id, distinct), caller.submit(distinct), strict=True))
        rows = {}
        for name, ticket in tickets.items():
            events = await drained(ticket)
            parts = [e.logprobs for e in events if isinstance(e, Scored)]
            rows[name] = np.concatenate([*parts, np.zeros(0, np.float32)])
        return [np.concatenate([rows[id(s)] for s in path]) for path in paths]


async def generated(engine: Engine, seed: int, choices: int) -> list[list[int]]:
    tokens = np.array([5, 6, 7 + seed])
    generations = [
        Generation(Sampling(1.0, 0, 1.0, seed, choice), 20, frozenset())
        for choice in range(choices)
    ]
    async with engine.caller() as caller:
        parent = Sequence(tokens, score_from=1)
        children = [
            Sequence(tokens, score_from=len(tokens) - 1, follow=each, parent=parent)
            for each in generations
        ]
        tickets = caller.submit([parent, *children])[1:]
        return [
            [e.token for e in await drained(ticket) if isinstance(e, Generated)]
            for ticket in tickets
        ]


@pytest.mark.anyio
async def test_two_loops_give_the_bits_of_one_and_both_work(engine: Engine, tiny: Bundle) -> None:
    rng = np.random.default_rng(0)
    begin = rng.integers(2, 400, 40)
    tokens = [rng.integers(2, 400, n) for n in rng.integers(2, 120, 30).tolist()]
    tokens += [np.concatenate([begin, rng.integers(2, 400, 9)]) for _ in range(10)]
    one = Engine(engine.loops[:1])
    expected = await scores(one, tokens)
    drawn = [await generated(one, seed, 3) for seed in range(4)]
    before = [loop.scheduler.counts.score for loop in engine.loops]
    async with asyncio.TaskGroup() as group:
        scored = group.create_task(scores(engine, tokens))
        streams = [group.create_task(generated(engine, seed, 3)) for seed in range(4)]
    for got, wanted in zip(scored.result(), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert [task.result() for task in streams] == drawn
    after = [loop.scheduler.counts.score for loop in engine.loops]
    assert all(late > early for late, early in zip(after, before, strict=True))


@pytest.mark.anyio
async def test_whoever_leaves_leaves_nothing_on_any_loop(engine: Engine) -> None:
    async with engine.caller() as caller:
        caller.submit([Sequence(np.full(5000, 8)) for _ in range(4)])
        caller.submit([stream(10_000) for _ in range(10)])
        assert all(loop.waiting for loop in engine.loops)
        await asyncio.sleep(0.05)
    while engine.waiting or not all(loop.scheduler.idle for loop in engine.loops):
        await asyncio.sleep(0.01)
    await asyncio.to_thread(engine.stop)
    assert [len(loop.scheduler.states.free) for loop in engine.loops] == [SLOTS, SLOTS]


@pytest.mark.anyio
async def test_an_engine_with_a_loop_that_has_ended_is_not_running(engine: Engine) -> None:
    assert engine.running
    await asyncio.to_thread(engine.loops[1].stop)
    assert not engine.running
    async with engine.caller() as caller:
        with pytest.raises(NotReadyError):
            caller.submit([text(5) for _ in range(4)])
    while engine.loops[0].waiting:  # what one loop had taken was dropped with the rest
        await asyncio.sleep(0.01)


@pytest.mark.anyio
async def test_waiting_counts_from_the_first_work_that_a_loop_has_of_a_caller(
    engine: Engine,
) -> None:
    for loop in engine.loops:
        loop.scheduler.unserved.max_seconds = 0.2
    async with engine.caller() as caller:
        for _ in range(2):  # one on each loop, the second long after the caller came
            await asyncio.sleep(0.3)
            engine.loops[0].waiting += 1  # so that the other is chosen
            (ticket,) = caller.submit([Sequence(np.zeros(5, np.int64))])
            events = await drained(ticket)
            assert isinstance(events[-1], Finished)
            engine.loops[0].waiting -= 1
            engine.loops.reverse()
