"""Several batches at a time, on sessions that share a pool: the same bits, and no slot lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.batches import Assignment, flat_batch
from app.engine.engine import Engine
from app.engine.loop import EngineLoop
from app.engine.policy import Budget
from app.engine.runtime.outputs import Outputs
from app.engine.runtime.session import Session, open_sessions
from app.engine.sampling.draw import Sampling
from app.engine.scheduler import Scheduler
from app.engine.sequence import Failed, Finished, Generated, Generation, Scored, Sequence
from app.engine.shared_prefixes import Text, prefix_tree
from app.engine.turns import CallerQueue
from app.metrics import Metrics
from model.core.bundle import Bundle
from model.core.flat_batch import FlatBatch, whole_text
from model.core.graph import Floats, Indices
from tests.engine.test_loop import drained
from tests.engine.test_scheduler import settle

SLOTS = 6
TEXT = st.lists(st.integers(2, 399), min_size=1, max_size=40)


@pytest.fixture(scope="module", params=["float32", "int8"])
def sessions(tiny: Bundle, request: pytest.FixtureRequest) -> list[Session]:
    """One with all threads and two that divide them."""
    ((all_cores, shares),) = open_sessions(tiny, "cpu", 2, 2, SLOTS, request.param)
    return [all_cores, *shares]


def ids(text: list[int]) -> Indices:
    return np.array([0, *text], np.int64)


def scores(session: Session, tokens: Indices) -> Floats:
    logprobs = session.run(whole_text(tokens, session.taps, session.multiple)).logprobs
    return logprobs[: len(tokens) - 1]


def stream(prompt: Indices, count: int, seed: int, parent: Sequence | None = None) -> Sequence:
    generation = Generation(Sampling(1.0, 0, 1.0, 0, seed), count, frozenset())
    return Sequence(prompt, score_from=len(prompt) - 1, follow=generation, parent=parent)


@settings(max_examples=60)
@given(
    st.lists(TEXT, min_size=1, max_size=4),
    st.lists(st.tuples(TEXT, st.integers(1, 8), st.integers(1, 3)), max_size=3),
    st.integers(1, 30),
    st.integers(0, SLOTS),
    st.none() | st.integers(1, 60),
    st.integers(0, 10**6),
)
def test_batches_that_overlap_in_any_order_give_the_same_bits(
    sessions: list[Session],
    texts: list[list[int]],
    prompts: list[tuple[list[int], int, int]],
    budget: int,
    slots: int,
    share: int | None,
    order: int,
) -> None:
    rng = random.Random(order)
    halo = sessions[0].config.receptive_field - 1
    # texts that begin alike share sequences, choices share their prompt
    paths = prefix_tree([Text(ids(texts[0] + text), 1) for text in texts], 0, halo)
    branches = list(dict.fromkeys(s for path in paths for s in path))
    requests = [branches]
    choices: list[tuple[Sequence, Indices]] = []
    for prompt, count, number in prompts if slots else ():
        tokens = ids(prompt)
        shared = Sequence(tokens, score_from=len(tokens) - 1)
        children = [stream(tokens, count, seed, shared) for seed in range(number)]
        choices += [(each, tokens) for each in children]
        requests.append([shared, *children])
    made = Scheduler(halo + 1, Budget(budget, budget, share), slots, len(sessions))
    for request in requests:
        made.add(CallerQueue(), request)
    scored: dict[Sequence, list[Floats]] = {s: [] for r in requests for s in r}
    under_way: list[tuple[list[Assignment], FlatBatch]] = []
    cancelled: set[Sequence] = set()
    while not made.idle or under_way:
        assert made.running_rows == sum(a.piece.rows for p, _ in under_way for a in p)
        picked: list[Assignment] = []
        if not under_way or (len(under_way) < len(sessions) and rng.random() < 0.6):
            picked = made.pick()
        if picked:
            held = [a.sequence for a in picked] + [a.sequence for p, _ in under_way for a in p]
            assert len(set(held)) == len(held)
            assert len(set(made.streams)) == len(made.streams)
            session = sessions[0]
            batch = flat_batch(picked, session)
            under_way.append((picked, batch))
        elif under_way:
            index = rng.randrange(len(under_way))
            if choices and rng.random() < 0.1:
                cancelled.add(choices[0][0])
                made.cancel(choices[0][0])
            picked, batch = under_way.pop(index)
            session = sessions[index % len(sessions)]
            for sequence, event in settle(made, picked, session.run(batch)):
                if isinstance(event, Scored):
                    scored[sequence].append(event.logprobs)
                elif isinstance(event, Generated):
                    scored[sequence].append(np.array([event.logprob], np.float32))
        else:
            assert made.idle  # else nothing would ever run again
    assert len(made.states.free) == slots
    for text, path in zip(texts, paths, strict=True):
        parts = [part for sequence in path for part in scored[sequence]]
        tokens = ids(texts[0] + text)
        np.testing.assert_array_equal(np.concatenate(parts), scores(sessions[0], tokens))
    for sequence, tokens in choices:
        if sequence not in cancelled and sequence.generated:
            tokens = np.concatenate([tokens, np.array(sequence.generated, np.int64)])
            expected = scores(sessions[0], tokens)[-len(sequence.generated) :]
            got = np.concatenate(scored[sequence])[: len(expected)]
            np.testing.assert_array_equal(got, expected)


@pytest.fixture
def engine(sessions: list[Session]) -> Iterator[EngineLoop]:
    all_cores, *shares = sessions
    scheduler = Scheduler(
        all_cores.config.receptive_field, Budget(32, 16, 24), SLOTS, workers=len(shares)
    )
    made = EngineLoop(scheduler, all_cores, Metrics(), shares)
    made.start()
    yield made
    made.stop()


@pytest.mark.anyio
async def test_threads_give_the_same_bits_and_lose_no_slot(
    engine: EngineLoop, sessions: list[Session]
) -> None:
    rng = np.random.default_rng(0)
    scored: list[tuple[Indices, Floats]] = []

    async def text(length: int) -> None:
        tokens = ids(rng.integers(2, 400, length).tolist())
        async with Engine([engine]).caller() as caller:
            (ticket,) = caller.submit([Sequence(tokens)])
            events = await drained(ticket)
        got = np.concatenate([e.logprobs for e in events if isinstance(e, Scored)])
        scored.append((tokens, got))

    async def generated(seed: int) -> list[int]:
        tokens = ids([5, 6, 7 + seed])
        async with Engine([engine]).caller() as caller:
            (ticket,) = caller.submit([stream(tokens, 30, seed)])
            events = await drained(ticket)
        return [e.token for e in events if isinstance(e, Generated)]

    async def left() -> None:
        async with Engine([engine]).caller() as caller:
            caller.submit([Sequence(ids([8] * 5000)), stream(ids([9]), 5000, 0)])
            await asyncio.sleep(0.05)

    alone = [await generated(seed) for seed in range(4)]
    async with asyncio.TaskGroup() as group:
        under_load = [group.create_task(generated(seed)) for seed in range(4)]
        for length in rng.integers(1, 300, 40).tolist():
            group.create_task(text(length))
        for _ in range(3):
            group.create_task(left())
    assert [task.result() for task in under_load] == alone
    while not engine.scheduler.idle:
        await asyncio.sleep(0.01)
    await asyncio.to_thread(engine.stop)  # cancelled pieces that were under way have landed
    assert len(engine.scheduler.states.free) == SLOTS
    assert engine.scheduler.running_rows == 0
    # a session runs one batch at a time, so not before
    for tokens, got in scored:
        np.testing.assert_array_equal(got, scores(sessions[0], tokens))


class Faulty:
    """A session that fails on batches that hold token 9."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.taps, self.precision = session.taps, session.precision
        self.multiple, self.tail_count = session.multiple, session.tail_count
        self.build = session.build

    def check(self) -> None:
        pass

    def run(self, batch: FlatBatch) -> Outputs:
        if 9 in batch.tokens:
            raise RuntimeError("a fault")
        return self.session.run(batch)


@pytest.mark.anyio
async def test_a_batch_that_fails_on_one_thread_leaves_the_others(
    sessions: list[Session],
) -> None:
    all_cores, *shares = (Faulty(session) for session in sessions)
    scheduler = Scheduler(sessions[0].config.receptive_field, Budget(8, 8, 6), SLOTS, 2)
    engine = EngineLoop(scheduler, all_cores, Metrics(), shares)
    engine.start()
    good = [ids([2 + n] * 50) for n in range(6)]
    async with Engine([engine]).caller() as one, Engine([engine]).caller() as other:
        tickets = one.submit([Sequence(tokens) for tokens in good])
        bad = other.submit([Sequence(ids([9] * 50)) for _ in range(6)])
        endings = [(await drained(ticket))[-1] for ticket in bad]
        assert endings == [Failed("internal engine error")] * 6
        # who shared a batch with a bad one fell with it; nobody waits for ever
        for ticket in tickets:
            assert isinstance((await drained(ticket))[-1], Finished | Failed)
        (last,) = one.submit([Sequence(good[0])])
        assert isinstance((await drained(last))[-1], Finished)
    assert engine.running
    engine.stop()
    assert len(scheduler.states.free) == SLOTS
