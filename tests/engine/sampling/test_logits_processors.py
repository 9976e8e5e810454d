"""Changes of a distribution: the formulas, and a row that depends on nothing beside it."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from app.engine.sampling.draw import Sampling, sample
from app.engine.sampling.logits_processors import Counts, LogitEdits, apply

SIZE = 40
TOKEN = st.integers(0, SIZE - 1)
TOKENS = st.lists(TOKEN, max_size=30)


def array(values: list[int]) -> np.ndarray:
    return np.array(values, np.int64)


def distribution(seed: int) -> np.ndarray:
    """Log-probabilities, float32 [SIZE]."""
    logits = np.random.default_rng(seed).normal(size=SIZE).astype(np.float32)
    return logits - np.log(np.exp(logits).sum())


@st.composite
def edits(draw: st.DrawFn) -> LogitEdits:
    """Any changes that leave something to choose."""
    biased = draw(st.lists(TOKEN, max_size=5, unique=True))
    biases = [draw(st.floats(-100, 100, width=32)) for _ in biased]
    return LogitEdits(
        repetition=draw(st.sampled_from([1.0, 1.3, 0.5])),
        presence=draw(st.sampled_from([0.0, 1.5, -2.0])),
        frequency=draw(st.sampled_from([0.0, 0.7, -0.1])),
        bias_ids=array(biased),
        bias=np.array(biases, np.float32),
        allowed=draw(st.one_of(st.none(), st.just(np.arange(3, 30)))),
        late=array(draw(st.lists(st.integers(30, 39), max_size=3, unique=True))),
        min_tokens=draw(st.integers(0, 20)),
        bad_words=draw(st.sampled_from([(), ((4,),), ((5, 6), (7,)), ((8, 8, 8),)])),
        counts=Counts(array(draw(st.lists(TOKEN, max_size=5, unique=True)))),
    )


def edited(row: np.ndarray, changes: LogitEdits, history: list[int]) -> np.ndarray:
    rows = row[None].copy()
    apply(rows, [(0, changes)], [history], [()])
    return rows[0]


@given(st.integers(0, 50), TOKENS, st.lists(TOKEN, max_size=8, unique=True))
def test_penalties_follow_their_formulas(seed: int, history: list[int], prompt: list[int]) -> None:
    row, times = distribution(seed), Counter(history)
    changes = LogitEdits(
        repetition=1.25, presence=0.5, frequency=0.25, counts=Counts(array(sorted(prompt)))
    )
    got = edited(row, changes, history)
    for token in range(SIZE):
        factor = 1.25 if token in times or token in prompt else 1.0
        expected = row[token] * factor - 0.5 * (token in times) - 0.25 * times[token]
        assert abs(got[token] - expected) < 1e-5


@given(TOKENS, st.lists(st.integers(0, 30), max_size=6))
def test_counts_are_those_of_the_tokens_however_often_they_are_asked(
    history: list[int], lengths: list[int]
) -> None:
    counts = Counts(array([3, 5]))
    for index in [*lengths, len(history)]:  # one may go back, as no stream does
        ids, times = counts.update(history[:index])
        got = dict(zip(ids.tolist(), times.tolist(), strict=True))
        assert got == {3: 0, 5: 0} | Counter(history[:index])


STREAMS = st.lists(
    st.tuples(st.one_of(st.none(), edits()), TOKENS, st.sampled_from([0.0, 0.8]), TOKEN),
    min_size=1,
    max_size=6,
)


@given(st.integers(0, 50), STREAMS)
def test_an_edited_row_does_not_depend_on_those_beside_it(
    seed: int, streams: list[tuple[LogitEdits | None, list[int], float, int]]
) -> None:
    rows = np.stack([distribution(seed + n) for n in range(len(streams))])
    before = rows.copy()
    samplings = [
        Sampling(heat, 0, 0.9, number, 0, banned=(0,), min_p=0.01, edits=changes)
        for changes, _, heat, number in streams
    ]
    histories = [history for _, history, _, _ in streams]
    together = sample(rows, samplings, histories)
    np.testing.assert_array_equal(rows, before)
    for index, (changes, history, _, _) in enumerate(streams):
        alone = sample(rows[index : index + 1], [samplings[index]], [history])
        assert alone == [together[index]]
        token = alone[0]
        assert token != 0
        if changes is not None:
            assert changes.allowed is None or token in changes.allowed
            assert len(history) >= changes.min_tokens or token not in changes.late
            for word in changes.bad_words:
                assert tuple([*history, token][-len(word) :]) != word


def test_a_bad_word_may_end_where_nothing_else_is_left() -> None:
    changes = LogitEdits(allowed=array([5, 6]), bad_words=((5,), (6, 6)))
    sampling = Sampling(0.0, 0, 1.0, 0, 0, edits=changes)
    assert sample(distribution(0)[None], [sampling], [[6]]) == [
        5 if distribution(0)[5] > distribution(0)[6] else 6
    ]
    assert sample(distribution(0)[None], [sampling], [[5]]) == [6]


def test_a_penalty_may_be_below_zero_and_a_bias_decides() -> None:
    row = distribution(1)
    least = int(row.argmin())
    bias = LogitEdits(bias_ids=array([least]), bias=np.array([100], np.float32))
    assert sample(row[None], [Sampling(1.0, 0, 1.0, 0, 0, edits=bias)], [[]]) == [least]
    liked = LogitEdits(presence=-2.0, frequency=-2.0)
    assert sample(row[None], [Sampling(0.0, 0, 1.0, 0, 0, edits=liked)], [[least] * 9]) == [least]


def test_min_p_keeps_what_has_that_share_of_the_largest() -> None:
    row = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    for least, kept in ((0.0, 4), (0.2, 3), (0.31, 2), (0.7, 1)):
        sampling = Sampling(1.0, 0, 1.0, 3, 0, min_p=least)
        drawn = {sample(row[None], [sampling], [range(n)])[0] for n in range(500)}
        assert drawn == set(range(kept))
    halved = Sampling(1.0, 0, 0.9, 3, 0, min_p=0.2)  # top_p is a share of what is left
    assert {sample(row[None], [halved], [range(n)])[0] for n in range(500)} == {0, 1, 2}
    cold = Sampling(0.5, 0, 1.0, 3, 0, min_p=0.3)  # at the temperature
    assert {sample(row[None], [cold], [range(n)])[0] for n in range(500)} == {0, 1}
