"""Batches that fail are run again in halves: the same bits, and only what is at fault fails."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.batches import Assignment, flat_batch, results
from app.engine.engine import Engine
from app.engine.loop import EngineLoop
from app.engine.policy import POLICY, Budget
from app.engine.retry import MemoryLimit
from app.engine.runtime.outputs import Outputs
from app.engine.runtime.session import Session
from app.engine.sampling.distributions import NextDistributions
from app.engine.scheduler import Scheduler
from app.engine.sequence import Event, Failed, Finished, Generated, Scored, Sequence
from app.engine.shared_prefixes import Text, prefix_tree
from app.engine.turns import CallerQueue
from app.errors import EngineError, NoMemoryError
from app.metrics import Metrics
from model.core.bundle import Bundle
from model.core.flat_batch import FlatBatch, whole_text
from model.core.graph import Floats, Indices
from tests.engine.test_loop import drained
from tests.engine.test_scheduler import FakeSession, add, rows, scheduler, settle, step, text
from tests.engine.test_scheduler import stream as greedy_stream
from tests.engine.test_workers import Faulty, ids, stream

SLOTS = 6
TEXT = st.lists(st.integers(2, 399), min_size=1, max_size=40)
POISON = 399


@pytest.fixture(scope="module", params=["tiny", "adaptive"])
def session(request: pytest.FixtureRequest) -> Session:
    bundle: Bundle = request.getfixturevalue(request.param)
    return Session(bundle, "cpu", 1, SLOTS, "float32")


Fault = Callable[[list[Assignment]], str]
"""What happens to a batch: nothing (""), or how it fails: `before` it runs, with its
`results`, `after` states are written, for lack of `memory`."""


def run(
    made: Scheduler, session: Session, requests: list[list[Sequence]], fault: Fault
) -> dict[Sequence, list[Event]]:
    """Runs everything to its end, with faults; the events of each sequence."""
    for request in requests:
        made.add(CallerQueue(), request)
    events: dict[Sequence, list[Event]] = {s: [] for r in requests for s in r}
    while picked := made.pick():
        assert made.running_rows == rows(picked)
        what = fault(picked)
        if what == "results":  # they break off when tokens have been drawn
            results(picked, session.run(flat_batch(picked, session)))
        elif what == "after":  # states have been written, and wrong ones by the second run
            session.run(flat_batch(picked, session))
            session.run(flat_batch(picked, session))
        if what:
            for sequence in made.retry(picked, memory=what == "memory"):
                events[sequence].append(Failed("fault"))
            continue
        for sequence, event in settle(made, picked, session.run(flat_batch(picked, session))):
            events[sequence].append(event)
    assert made.idle
    assert not made.ready
    assert made.running_rows == 0
    assert sorted(made.states.free) == sorted(Scheduler(2, made.budget, SLOTS).states.free)
    return events


def scored(events: list[Event]) -> Floats:
    parts = [e.logprobs for e in events if isinstance(e, Scored)]
    return np.concatenate([np.zeros(0, np.float32), *parts])


def expected(session: Session, tokens: Indices) -> Floats:
    logprobs = session.run(whole_text(tokens, session.taps, session.multiple)).logprobs
    return logprobs[: len(tokens) - 1]


Work = tuple[list[list[int]], list[tuple[list[int], int, int]]]
WORK = st.tuples(
    st.lists(TEXT, min_size=1, max_size=4),
    st.lists(st.tuples(TEXT, st.integers(1, 8), st.integers(1, 3)), max_size=3),
)


def requests_of(work: Work, halo: int) -> tuple[list[list[Sequence]], list[Sequence]]:
    """Texts that share prefixes, and choices that share their prompts; the latter also alone."""
    texts, prompts = work
    paths = prefix_tree([Text(ids(texts[0] + text), 1) for text in texts], 0, halo)
    requests = [list(dict.fromkeys(s for path in paths for s in path))]
    choices: list[Sequence] = []
    for prompt, count, number in prompts:
        tokens = ids(prompt)
        shared = Sequence(tokens, score_from=len(tokens) - 1)
        children = [stream(tokens, count, seed, shared) for seed in range(number)]
        choices += children
        requests.append([shared, *children])
    return requests, choices


def bits(events: dict[Sequence, list[Event]]) -> list[object]:
    """All that callers get, comparable."""
    found: list[object] = []
    for sequence in events:
        tokens = [(e.token, e.logprob, e.finish) for e in events[sequence] if _made(e)]
        found.append((scored(events[sequence]).tobytes(), tokens, len(sequence.generated)))
    return found


def _made(event: Event) -> bool:
    return isinstance(event, Generated)


@settings(max_examples=30)
@given(WORK, st.integers(1, 60), st.integers(1, SLOTS), st.integers(0, 10**6))
def test_faults_of_random_batches_change_no_bit_of_what_succeeds(
    session: Session, work: Work, budget: int, slots: int, order: int
) -> None:
    halo = session.config.receptive_field - 1
    rng = random.Random(order)

    def fault(picked: list[Assignment]) -> str:
        if rng.random() < 0.7:
            return ""
        if len(picked) == 1:  # a sequence alone would be at fault
            piece = picked[0].piece
            return "memory" if piece.rows - piece.halo > 1 else ""
        return rng.choice(["before", "results", "after", "memory"])

    def made() -> Scheduler:
        return Scheduler(halo + 1, Budget(budget, budget), SLOTS)

    calm = run(made(), session, requests_of(work, halo)[0], lambda _: "")
    shaken = run(made(), session, requests_of(work, halo)[0], fault)
    assert bits(shaken) == bits(calm)
    assert all(isinstance(events[-1], Finished) for events in shaken.values())


@settings(max_examples=15)
@given(WORK, st.integers(1, 60), st.data())
def test_a_poisoned_sequence_fails_alone(
    session: Session, work: Work, budget: int, data: st.DataObject
) -> None:
    halo = session.config.receptive_field - 1
    count = sum(map(len, requests_of(work, halo)[0]))
    bad = data.draw(st.integers(0, count - 1))
    requests = requests_of(work, halo)[0]
    poisoned = [s for r in requests for s in r][bad]
    calm = run(
        Scheduler(halo + 1, Budget(budget, budget), SLOTS),
        session,
        requests_of(work, halo)[0],
        lambda _: "",
    )
    shaken = run(
        Scheduler(halo + 1, Budget(budget, budget), SLOTS),
        session,
        requests,
        lambda picked: "after" if any(a.sequence is poisoned for a in picked) else "",
    )
    assert shaken[poisoned] == [Failed("fault")]
    for n, (one, other) in enumerate(zip(bits(shaken), bits(calm), strict=True)):
        assert n == bad or one == other


def test_other_work_goes_on_between_the_groups() -> None:
    made = scheduler(tokens=32)
    texts = [text(8) for _ in range(4)]
    for one in texts:
        add(made, one)
    made.retry(made.pick(), memory=False)
    add(made, other := text(500))
    order = [[a.sequence for a in step(made)[0]] for _ in range(4)]
    assert order == [texts[:2], [other], texts[2:], [other]]


def test_a_group_has_no_more_rows_than_a_batch() -> None:
    made = scheduler(tokens=32, stream_tokens=32)
    streams = [greedy_stream(50) for _ in range(30)]
    add(made, *streams)
    while any(not s.streaming for s in streams):
        step(made)
    picked = made.pick()
    assert len(picked) > 20
    made.retry(picked, memory=False)
    again = []
    while made.retries.waiting:
        batch, _ = step(made)
        if any(a.piece.halo for a in batch):  # a state that is lost is computed again
            assert rows(batch) <= 32
            assert all(a.piece.read_slot is None for a in batch)
            again += [a.sequence for a in batch]
    assert again == [a.sequence for a in picked]
    assert all(not a.piece.halo for a in made.pick())  # and is kept from then on


def test_what_is_cancelled_is_not_run_again() -> None:
    made = scheduler()
    add(made, *(texts := [text(8) for _ in range(3)]))
    picked = made.pick()
    made.cancel(texts[0])
    made.retry(picked, memory=False)
    made.cancel(texts[1])
    assert [a.sequence for a in step(made)[0]] == [texts[2]]
    assert step(made)[0] == []
    assert made.idle
    assert len(made.states.free) == 100


def test_a_lack_of_memory_makes_batches_smaller_until_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    limit = MemoryLimit(512, POLICY)
    limit.shrink(200)
    assert limit.rows == 100
    limit.shrink(90)
    limit.shrink(40)
    limit.shrink(40)
    assert limit.rows == POLICY.memory_rows
    assert len(caplog.records) == 3  # one for each time they became smaller
    for _ in range(1000):
        limit.grow_after(POLICY.memory_rows // 2 - 1)  # says nothing of larger ones
    assert limit.rows == POLICY.memory_rows
    while limit.limited:
        limit.grow_after(limit.rows)
    assert limit.rows == 512
    assert len(caplog.records) == 3 + 4


class Small(FakeSession):
    """Has memory for 60 rows."""

    error: type[Exception] = NoMemoryError

    def __init__(self) -> None:
        self.rows: list[int] = []

    def run(self, batch: FlatBatch) -> Outputs:
        self.rows.append(len(batch.tokens))
        if len(batch.tokens) > 60:
            raise self.error("no memory")
        return super().run(batch)


@pytest.mark.anyio
@pytest.mark.parametrize("error", [NoMemoryError, MemoryError])
@pytest.mark.parametrize("lengths", [[200], [100, 3, 100], [30] * 12])
async def test_a_batch_that_lacks_memory_is_run_in_smaller_ones(
    error: type[Exception], lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Small, "error", error)
    engine = EngineLoop(Scheduler(5, Budget(256, 256), 8), small := Small(), Metrics())
    engine.start()
    async with Engine([engine]).caller() as caller:
        tickets = caller.submit([text(length) for length in lengths])
        for ticket in tickets:
            events = await drained(ticket)
            assert isinstance(events[-1], Finished)
            np.testing.assert_array_equal(
                scored(events), -ticket.sequence.tokens[1:].astype(np.float32)
            )
        failed = len([count for count in small.rows if count > 60])
        (last,) = caller.submit([text(300)])  # the next one knows
        assert isinstance((await drained(last))[-1], Finished)
    assert len([count for count in small.rows if count > 60]) == failed
    engine.stop()
    assert len(engine.scheduler.states.free) == 8


@pytest.mark.anyio
async def test_a_row_that_lacks_memory_alone_fails() -> None:
    class Tiny(FakeSession):
        def run(self, batch: FlatBatch) -> Outputs:
            if 9 in batch.tokens:
                raise MemoryError
            return super().run(batch)

    engine = EngineLoop(Scheduler(5, Budget(256, 256), 8), Tiny(), Metrics())
    engine.start()
    async with Engine([engine]).caller() as caller:
        bad, good = caller.submit([text(40), Sequence(np.ones(30, np.int64))])
        assert (await drained(bad))[-1] == Failed("internal engine error")
        assert isinstance((await drained(good))[-1], Finished)
    engine.stop()
    assert engine.metrics.failed_sequences._value.get() == 1


@pytest.mark.anyio
async def test_one_culprit_among_many_ends_neither_the_others_nor_the_engine(
    session: Session,
) -> None:
    """Among scores, streams and texts of several pieces, on threads of their own."""
    checked: list[int] = []

    class Poisoned(Faulty):
        def check(self) -> None:
            checked.append(1)

        def run(self, batch: FlatBatch) -> Outputs:
            if POISON in batch.tokens:
                raise EngineError("a fault")
            return self.session.run(batch)

    async def ask(loop: EngineLoop, *, poison: bool) -> list[object]:
        async with Engine([loop]).caller() as caller, Engine([loop]).caller() as other:
            bad = other.submit([Sequence(ids([7, POISON, 8]))] * poison)
            tickets = caller.submit(
                [
                    *(Sequence(ids([5 + n] * (10 + 9 * n))) for n in range(8)),
                    *(stream(ids([9, 8 + seed]), 12, seed) for seed in range(6)),
                ]
            )
            if poison:
                await asyncio.sleep(0.01)
                bad += other.submit([Sequence(ids([7] * 70 + [POISON, 8]))])
            got = {ticket.sequence: await drained(ticket) for ticket in tickets}
            for ticket in bad:
                assert (await drained(ticket))[-1] == Failed("a fault")
        assert all(isinstance(events[-1], Finished) for events in got.values())
        return bits(got)

    halo = session.config.receptive_field - 1
    loop = EngineLoop(Scheduler(halo + 1, Budget(64, 16), SLOTS), Poisoned(session), Metrics())
    loop.start()
    calm = await ask(loop, poison=False)
    assert await ask(loop, poison=True) == calm
    assert loop.running
    loop.stop()
    assert len(loop.scheduler.states.free) == SLOTS
    assert loop.metrics.retried_batches._value.get() >= 1


@pytest.mark.anyio
async def test_results_that_break_off_leave_every_token_to_be_drawn_again(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log-probability of a token is read after others of the batch have got theirs."""
    loop = EngineLoop(
        Scheduler(session.config.receptive_field, Budget(64, 64), SLOTS), session, Metrics()
    )
    loop.start()

    async def texts() -> list[list[int]]:
        async with Engine([loop]).caller() as caller:
            tickets = caller.submit([stream(ids([9]), 10, seed) for seed in range(5)])
            events = [await drained(ticket) for ticket in tickets]
        return [[e.token for e in each if isinstance(e, Generated)] for each in events]

    calm = await texts()
    logprob, calls = NextDistributions.logprob, 0

    def broken(self: NextDistributions, row: int, token: int) -> float:
        nonlocal calls
        calls += 1
        if row and calls % 5 == 0:
            raise RuntimeError("a fault")
        return logprob(self, row, token)

    monkeypatch.setattr(NextDistributions, "logprob", broken)
    assert await texts() == calm
    loop.stop()
    assert loop.metrics.retried_batches._value.get() >= 1


@pytest.mark.anyio
async def test_an_engine_that_always_fails_ends_and_leaves_nobody_waiting() -> None:
    class Dead(FakeSession):
        def run(self, batch: FlatBatch) -> Outputs:
            raise EngineError("an illegal memory access")

        def check(self) -> None:
            raise EngineError("golden texts fail")

    loop = EngineLoop(Scheduler(5, Budget(64, 64), 8), Dead(), Metrics())
    loop.start()
    async with Engine([loop]).caller() as caller:
        tickets = caller.submit([text(5) for _ in range(30)])
        for ticket in tickets:
            (failed,) = await drained(ticket)
            assert failed == Failed(
                "the engine has stopped: 3 batches failed, and golden texts fail", stopped=True
            )
    loop.stop()
