"""Texts that share beginnings are scored as a tree, to the same bits and in fewer rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.batches import flat_batch
from app.engine.policy import Budget
from app.engine.runtime.outputs import Outputs
from app.engine.runtime.session import Session
from app.engine.sampling.distributions import NextDistributions
from app.engine.sampling.draw import Sampling
from app.engine.scheduler import Scheduler
from app.engine.sequence import Generation, Scored, Sequence
from app.engine.shared_prefixes import Text, prefix_tree
from app.engine.turns import CallerQueue
from model.core.bundle import Bundle, load
from model.core.flat_batch import whole_text
from model.core.graph import Floats, Indices
from model.core.tokenizer import Tokenizer
from model.data.corpus import Corpus
from model.export.bundle_writer import export
from tests.engine.test_exactness import random_model
from tests.engine.test_scheduler import settle

HALO = 12  # of the tiny bundle


@pytest.fixture(scope="module", params=["float32", "int8"])
def session(tiny: Bundle, request: pytest.FixtureRequest) -> Session:
    return Session(tiny, "cpu", 1, 8, request.param)


def run(
    session: Session, sequences: list[Sequence], budget: int, slots: int
) -> dict[Sequence, Floats]:
    """Scores of every sequence; checks that all slots are free in the end."""
    halo = session.config.receptive_field
    scheduler = Scheduler(halo, Budget(budget, budget), slots)
    scheduler.add(CallerQueue(), sequences)
    got: dict[Sequence, list[Floats]] = {s: [] for s in sequences}
    while picked := scheduler.pick():
        batch = flat_batch(picked, session)
        for sequence, event in settle(scheduler, picked, session.run(batch)):
            if isinstance(event, Scored):
                got[sequence].append(event.logprobs)
    assert scheduler.idle
    assert len(scheduler.states.free) == slots
    run.rows = scheduler.counts.score + scheduler.counts.halo  # type: ignore[attr-defined]
    return {s: np.concatenate([np.zeros(0, np.float32), *parts]) for s, parts in got.items()}


def every(paths: list[list[Sequence]]) -> list[Sequence]:
    return list(dict.fromkeys(s for path in paths for s in path))


def expected_scores(session: Session, ids: Indices) -> Floats:
    return session.run(whole_text(ids, session.taps, session.multiple)).logprobs[: len(ids) - 1]


@pytest.fixture(scope="module")
def dilated(
    tokenizer: Tokenizer, calibration: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> Session:
    """A session of the shipped model's shape, whose states have many phases."""
    folder = tmp_path_factory.mktemp("bundles") / "dilated"
    model = random_model("prose-18m-3", tokenizer, shrink=16)
    export(model, tokenizer, folder, "dilated", calibration=calibration)
    return Session(load(folder), "cpu", 1, 8)


TREES = (
    st.lists(st.lists(st.integers(2, 3), min_size=1, max_size=40), min_size=1, max_size=8),
    st.lists(st.integers(2, 4), max_size=30),
    st.integers(0, 30),
    st.integers(1, 40),
    st.integers(0, 8),
)
"""What follows a beginning, the beginning, how much of it is context, rows of a batch, slots."""


@settings(max_examples=80)
@given(*TREES)
def test_a_tree_gives_the_bits_of_texts_scored_apart(
    session: Session, ends: list[list[int]], begin: list[int], context: int, budget: int, slots: int
) -> None:
    check_tree(session, ends, begin, context, budget, slots)


@settings(max_examples=20)
@given(*TREES)
def test_a_tree_of_a_model_with_dilations_gives_them_too(
    dilated: Session, ends: list[list[int]], begin: list[int], context: int, budget: int, slots: int
) -> None:
    check_tree(dilated, ends, begin, context, budget, slots)


def check_tree(
    session: Session, ends: list[list[int]], begin: list[int], context: int, budget: int, slots: int
) -> None:
    given = 1 + min(context, len(begin))
    texts = [Text(np.array([0, *begin, *end], np.int64), given) for end in ends]
    paths = prefix_tree(texts, 0, session.config.receptive_field - 1)
    got = run(session, every(paths), budget, slots)
    for text, path in zip(texts, paths, strict=True):
        scores = np.concatenate([got[s] for s in path])
        np.testing.assert_array_equal(scores, expected_scores(session, text.ids)[given - 1 :])


def test_a_shared_half_is_computed_once(session: Session) -> None:
    rng = np.random.default_rng(0)
    begin = rng.integers(2, 400, 20).tolist()
    texts = [Text(np.array([0, *begin, *rng.integers(2, 400, 20)]), 1) for _ in range(100)]
    together = run(session, every(prefix_tree(texts, 0, HALO)), 256, 1024)
    rows = run.rows  # type: ignore[attr-defined]
    apart = [Sequence(text.ids) for text in texts]
    run(session, apart, 256, 1024)
    assert rows <= 0.6 * run.rows  # type: ignore[attr-defined]
    assert len(together) == 101


def test_a_shared_context_needs_no_halo_for_each_text(session: Session) -> None:
    context = np.random.default_rng(0).integers(2, 400, 50).tolist()
    texts = [Text(np.array([0, *context, 2 + n]), 51) for n in range(50)]
    run(session, every(prefix_tree(texts, 0, HALO)), 256, 1024)
    assert run.rows <= 50 + 1 + HALO  # type: ignore[attr-defined]


def test_equal_texts_are_one_sequence_and_prefixes_end_where_they_end() -> None:
    ids = np.arange(40)
    paths = prefix_tree([Text(ids, 1), Text(ids[:20], 1), Text(ids, 1)], 0, HALO)
    assert [len(path) for path in paths] == [2, 1, 2]
    assert paths[0] == paths[2]
    assert paths[0][0] is paths[1][0]
    assert paths[0][1].parent is paths[0][0]


def test_a_chain_of_a_thousand_prefixes_needs_no_deep_recursion() -> None:
    ids = np.arange(9000)
    paths = prefix_tree([Text(ids[: 9 * n + 9], 1) for n in range(999)], 0, HALO)
    for number, path in enumerate(paths):
        assert sum(s.rows - s.computed for s in path) == 9 * number + 8


def test_what_one_text_scores_another_may_have_as_its_context(session: Session) -> None:
    ids = np.arange(41) % 300
    texts = [Text(ids, 1), Text(ids, 20), Text(ids[:30], 20), Text(ids[:30], 1)]
    paths = prefix_tree(texts, 0, HALO)
    got = run(session, every(paths), 40, 8)
    for text, path in zip(texts, paths, strict=True):
        scores = np.concatenate([got[s] for s in path])
        np.testing.assert_array_equal(
            scores, expected_scores(session, text.ids)[text.prefix_length - 1 :]
        )


def test_little_in_common_is_not_worth_a_branch() -> None:
    texts = [Text(np.array([0, 5, 6, n, n]), 1) for n in range(7, 10)]
    assert [len(path) for path in prefix_tree(texts, 0, HALO)] == [1, 1, 1]


def test_a_beginning_whose_batch_failed_leaves_its_children_exact(session: Session) -> None:
    begin = np.random.default_rng(0).integers(2, 400, 30).tolist()
    texts = [Text(np.array([0, *begin, 2 + n, 3]), 1) for n in range(3)]
    sequences = every(prefix_tree(texts, 0, HALO))
    scheduler = Scheduler(HALO + 1, Budget(64, 64), 4)
    scheduler.add(CallerQueue(), sequences)
    failed = scheduler.drop(scheduler.pick())
    assert failed == sequences[:1]
    got: dict[Sequence, list[Floats]] = {s: [] for s in sequences}
    while picked := scheduler.pick():
        batch = flat_batch(picked, session)
        for sequence, event in settle(scheduler, picked, session.run(batch)):
            if isinstance(event, Scored):
                got[sequence].append(event.logprobs)
    assert len(scheduler.states.free) == 4
    for text, child in zip(texts, sequences[1:], strict=True):
        scores = np.concatenate(got[child])
        np.testing.assert_array_equal(scores, expected_scores(session, text.ids)[-len(scores) :])


def test_cancelled_children_free_their_parents_slot() -> None:
    ids = np.arange(40)
    sequences = every(prefix_tree([Text(np.append(ids, n), 1) for n in range(3)], 0, HALO))
    scheduler = Scheduler(HALO + 1, Budget(64, 64), 4)
    scheduler.add(CallerQueue(), sequences)
    picked = scheduler.pick()
    settle(
        scheduler,
        picked,
        Outputs(np.zeros(64, np.float32), NextDistributions(np.zeros((4, 10), np.float32))),
    )
    assert len(scheduler.states.free) == 3
    for child in sequences[1:]:
        scheduler.cancel(child)
    assert len(scheduler.states.free) == 4
    assert scheduler.idle or not scheduler.pick()


def test_choices_of_a_prompt_share_its_rows_and_are_as_they_would_be_alone(
    session: Session,
) -> None:
    ids = np.array([0, *np.random.default_rng(0).integers(2, 400, 30)], np.int64)

    def choice(number: int, parent: Sequence | None = None) -> Sequence:
        generation = Generation(Sampling(1.0, 0, 1.0, 5, number), 6, frozenset())
        return Sequence(ids, score_from=len(ids) - 1, follow=generation, parent=parent)

    def generated(sequences: list[Sequence]) -> tuple[list[list[int]], int]:
        halo = session.config.receptive_field
        scheduler = Scheduler(halo, Budget(64, 64), 8)
        scheduler.add(CallerQueue(), sequences)
        while picked := scheduler.pick():
            batch = flat_batch(picked, session)
            settle(scheduler, picked, session.run(batch))
        assert len(scheduler.states.free) == 8
        counts = scheduler.counts
        rows = counts.prefill + counts.decode + counts.score + counts.halo
        return [s.generated for s in sequences if s.follow is not None], rows

    parent = Sequence(ids, score_from=len(ids) - 1)
    together, rows = generated([parent, *(choice(n, parent) for n in range(10))])
    apart = [generated([choice(n)]) for n in range(10)]
    assert together == [texts[0] for texts, _ in apart]
    assert len({tuple(text) for text in together}) > 1
    assert rows == 1 + HALO + 10 * 6
    assert sum(count for _, count in apart) == 10 * (1 + HALO + 5)


@pytest.mark.parametrize(("slots", "requests"), [(1, 1), (2, 2), (16, 40)])
def test_parents_that_hold_every_slot_do_not_stop_their_choices(slots: int, requests: int) -> None:
    scheduler = Scheduler(HALO + 1, Budget(64, 64), slots)
    choices = []
    for number in range(requests):
        ids = np.array([0, 5, 6, 7, 8, number], np.int64)
        parent = Sequence(ids, score_from=5)
        generation = Generation(Sampling(0.0, 0, 1.0, 0, 0), 2, frozenset())
        children = [Sequence(ids, score_from=5, follow=generation, parent=parent) for _ in range(2)]
        scheduler.add(CallerQueue(), [parent, *children])
        choices += children
    while not scheduler.idle:
        picked = scheduler.pick()
        assert picked or scheduler.idle
        head = np.zeros((128, 300), np.float32)
        settle(scheduler, picked, Outputs(np.zeros(256, np.float32), NextDistributions(head)))
    assert all(choice.closed and len(choice.generated) == 1 for choice in choices)
    assert len(scheduler.states.free) == slots
