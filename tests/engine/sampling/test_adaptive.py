"""Draws from an adaptive softmax: exact, and the tails are there whenever one needs them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.batches import flat_batch
from app.engine.policy import Budget
from app.engine.runtime.session import Session
from app.engine.sampling import adaptive
from app.engine.sampling.adaptive import Draw, draw, tail_terms
from app.engine.sampling.distributions import NextDistributions
from app.engine.sampling.draw import Sampling
from app.engine.scheduler import Scheduler
from app.engine.sequence import Generated, Generation, Sequence
from app.engine.turns import CallerQueue
from model.core.bundle import Bundle
from model.core.config import Tail
from model.core.graph import HELD_TOKENS, Floats, Precision
from tests.engine.test_scheduler import settle

TAILS = Tail(12, 150, 4), Tail(150, 400, 2)
"""A head of 12 common tokens and two tails, one of more than a block."""


def logprobs(logits: Floats) -> Floats:
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)), np.float32)


def head_and_tails(rows: int, seed: int, spread: float, tails: float) -> tuple[Floats, Floats]:
    """Distributions of n rows as a graph gives them. tails: added to the entries of the tails."""
    numbers = np.random.default_rng(seed)
    head = spread * numbers.standard_normal((rows, 12 + len(TAILS))).astype(np.float32)
    head[:, 12:] += tails
    head = logprobs(head)
    parts = [
        head[:, 12 + n, None]
        + logprobs(spread * numbers.standard_normal((rows, tail.size)).astype(np.float32))
        for n, tail in enumerate(TAILS)
    ]
    return head, np.concatenate(parts, axis=1)


def distributions(
    head: Floats, tails: Floats, rows: Iterable[int], bounds: tuple[Tail, ...] = TAILS
) -> NextDistributions:
    kept = np.array(list(rows), np.int64)
    return NextDistributions(head, bounds, kept, tails[kept])


def needed(head: Floats, draws: list[Draw], common: int = 12) -> list[int]:
    """The rows for which a graph computes the tails."""
    terms = tail_terms(draws, head.shape[1] - common)
    best = head[:, HELD_TOKENS:common].max(1, keepdims=True)
    likely = np.exp(np.concatenate([best, head[:, :HELD_TOKENS], head[:, common:]], axis=1))
    rows: list[int] = np.flatnonzero((terms.weights * likely).sum(1) >= terms.floors).tolist()
    return rows


def frequencies(head: Floats, tails: Floats, sampling: Sampling, count: int = 8000) -> Floats:
    one = distributions(np.repeat(head, 500, 0), np.repeat(tails, 500, 0), range(500))
    drawn: list[int] = []
    for first in range(0, count, 500):
        drawn += draw(one, range(500), [(sampling, first + n) for n in range(500)])
    return np.bincount(drawn, minlength=400) / count


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.4])
@pytest.mark.parametrize("banned", [(), (0,), (0, 1)])
def test_tokens_come_as_often_as_their_probabilities(
    temperature: float, banned: tuple[int, ...]
) -> None:
    head, tails = head_and_tails(1, 3, 2.0, 1.5)
    sampling = Sampling(temperature, 0, 1.0, 5, 0, banned)
    assert sampling.drawn_head_first
    weights = np.exp(np.concatenate([head[:, :12], tails], axis=1)[0] / temperature)
    weights[list(banned)] = 0.0
    weights /= weights.sum()
    got = frequencies(head, tails, sampling)
    assert not got[list(banned)].any()
    np.testing.assert_allclose(got, weights, atol=0.02)
    # in the tails too
    assert got[12:150].sum() == pytest.approx(weights[12:150].sum(), abs=0.02)
    assert got[150:].sum() == pytest.approx(weights[150:].sum(), abs=0.02)


@given(
    st.integers(0, 2**31),
    st.floats(0.0, 12.0),
    st.floats(-8.0, 8.0),
    st.one_of(st.sampled_from([0.0, 0.25, 1.0]), st.floats(0.25, 1.0)),
    st.sampled_from([(), (0,), (1,), (0, 1)]),
)
def test_a_draw_without_tails_is_the_one_with_all_of_them(
    seed: int, spread: float, tails: float, temperature: float, banned: tuple[int, ...]
) -> None:
    head, rest = head_and_tails(16, seed, spread, tails)
    draws = [(Sampling(temperature, 0, 1.0, seed, n, banned), n) for n in range(16)]
    expected = draw(distributions(head, rest, range(16)), range(16), draws)
    rows = needed(head, draws)
    spare = distributions(head, rest, rows)
    assert draw(spare, range(16), draws) == expected
    # one alone draws what it draws among others
    for row in range(16):
        assert draw(spare, [row], [draws[row]]) == [expected[row]]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("many", [False, True])
def test_first_tokens_of_a_tail_are_not_taken_for_entries_of_the_next(
    temperature: float, many: bool
) -> None:
    bounds = Tail(5, 8, 1), Tail(8, 10, 1), Tail(10, 40, 2)
    head = logprobs(np.array([[0, 0, 0, 0, 1, 4, 1, 2]], np.float32))
    parts = [
        head[:, 5 + n, None] + logprobs(np.array([logits], np.float32))
        for n, logits in enumerate([[0.0, 3.0, 3.0], [0.0, 2.0], [0.0] * 29 + [2.0]])
    ]
    tails = np.concatenate(parts, axis=1)
    weights = np.exp(np.concatenate([head[:, :5], tails], axis=1)[0] / temperature)
    count = 4000
    head, tails = np.repeat(head, count, 0), np.repeat(tails, count, 0)
    every = distributions(head, tails, range(count), bounds)
    draws = [(Sampling(temperature, 0, 1.0, 5, 0), n) for n in range(count)]
    if many:
        drawn = draw(every, range(count), draws)
    else:
        drawn = [draw(every, [n], [draws[n]])[0] for n in range(count)]
    got = np.bincount(drawn, minlength=40) / count
    np.testing.assert_allclose(got, weights / weights.sum(), atol=0.03)


@given(
    st.sampled_from([5, 12, 200]),
    st.integers(0, 2**31),
    st.floats(-10.0, 6.0),
    st.sampled_from([0.25, 0.3, 0.5, 0.7, 0.95, 1.0]),
    st.sampled_from([(), (0,), (0, 1)]),
    st.one_of(
        st.floats(1.0, 12.0).map(lambda digits: 1 - 10**-digits),
        st.floats(1.0, 12.0).map(lambda digits: 10**-digits),
    ),
)
@settings(max_examples=300)
def test_no_draw_at_a_bound_lacks_its_tail(
    common: int,
    seed: int,
    tails: float,
    temperature: float,
    banned: tuple[int, ...],
    share: float,
) -> None:
    numbers = np.random.default_rng(seed)
    head = numbers.standard_normal((4, common + 1)).astype(np.float32)
    head[:, common] += tails
    head = logprobs(head)
    rest = head[:, common:] + logprobs(numbers.standard_normal((4, 100)).astype(np.float32))
    bounds = (Tail(common, common + 100, 4),)
    # the number drawn also at and beside the place where the tail begins
    mass = np.exp(head.astype(np.float64) / temperature)
    mass[:, list(banned)] = 0.0
    edge = float(mass[0, :common].sum() / mass[0].sum())
    for number in (share, edge, edge - 1e-7, edge + 1e-7, np.nextafter(1.0, 0.0)):
        with pytest.MonkeyPatch.context() as patch:
            clipped = min(max(float(number), 0.0), float(np.nextafter(1.0, 0.0)))
            for module in ("adaptive", "draw"):
                name = f"app.engine.sampling.{module}.uniform"
                patch.setattr(name, lambda *_, number=clipped: number)
            patch.setattr(adaptive, "_most_probable_common", _never)
            draws = [(Sampling(temperature, 0, 1.0, 0, n, banned), 0) for n in range(4)]
            rows = needed(head, draws, common)
            spare = distributions(head, rest, rows, bounds)
            assert draw(spare, range(4), draws) == draw(
                distributions(head, rest, range(4), bounds), range(4), draws
            )
            for row in range(4):
                draw(spare, [row], draws[row : row + 1])


def _never(*_: object) -> int:
    raise AssertionError("a tail was not computed")


def test_most_draws_need_no_tails() -> None:
    head, _ = head_and_tails(2000, 1, 1.0, 1.0)
    share = np.exp(head[:, 12:]).sum(1).mean()
    draws = [(Sampling(1.0, 0, 1.0, n, 0), 0) for n in range(2000)]
    assert len(needed(head, draws)) / 2000 == pytest.approx(share, abs=0.05)


def test_a_banned_token_with_all_the_mass_leaves_the_others() -> None:
    head = np.full((2, 14), -200.0, np.float32)
    head[:, 1] = 0.0
    tails = np.full((2, 388), -300.0, np.float32)
    tails[:, 7] = -200.0
    draws = [(Sampling(1.0, 0, 1.0, n, 0, (0, 1)), n) for n in range(2)]
    assert needed(head, draws) == [0, 1]
    every = distributions(head, tails, [0, 1])
    for tokens in (draw(every, [0, 1], draws), draw(every, [0], draws[:1])):
        assert not set(tokens) & {0, 1}


def test_the_most_probable_token_is_found_in_a_tail_too_and_equal_ones_by_rising_id() -> None:
    head, tails = head_and_tails(1, 4, 1.0, 0.0)
    greedy = [(Sampling(0.0, 0, 1.0, 0, 0), 0)]
    tails[0, 200] = tails[0, 100] = -0.01
    assert draw(distributions(head, tails, [0]), [0], greedy) == [112]
    tails[0, :] = -50.0
    head[0, 5] = head[0, 3] = -0.01
    assert draw(distributions(head, tails, [0]), [0], greedy) == [3]
    held = [(Sampling(0.0, 0, 1.0, 0, 0, (0, 1)), 0)]
    head[0, 1] = 0.0
    assert draw(distributions(head, tails, [0]), [0, 0], greedy + held) == [1, 3]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.2, 0, 1.0, 0, 0),
        Sampling(1.0, 5, 1.0, 0, 0),
        Sampling(1.0, 0, 0.9, 0, 0),
        Sampling(1.0, 0, 1.0, 0, 0, min_p=0.1),
        Sampling(1.0, 0, 1.0, 0, 0, banned=(0, 7)),
        Sampling(0.1, 0, 1.0, 0, 0),
    ],
)
def test_what_a_head_cannot_decide_has_whole_distributions(sampling: Sampling) -> None:
    assert not sampling.drawn_head_first


@pytest.fixture(scope="module", params=["float32", "int8"])
def session(adaptive: Bundle, request: pytest.FixtureRequest) -> Session:
    precision: Precision = request.param
    return Session(adaptive, "cpu", 1, 40, precision)


def generated(session: Session, temperature: float, top: int) -> tuple[list[list[tuple]], int]:
    """What 30 streams generate, and for how many rows the tails were computed."""
    scheduler = Scheduler(session.config.receptive_field, Budget(64, 64), 40)
    streams = []
    for number in range(30):
        sampling = Sampling(temperature, 0, 1.0, number, 0, (0, 1))
        follow = Generation(sampling, 12, frozenset(), top)
        tokens = np.array([0, 5, 9 + number])
        streams.append(Sequence(tokens, score_from=2, follow=follow))
    scheduler.add(CallerQueue(), streams)
    got: dict[Sequence, list[tuple]] = {stream: [] for stream in streams}
    paid = 0
    while picked := scheduler.pick():
        outputs = session.run(flat_batch(picked, session))
        paid += sum(outputs.next_distributions.has_tails(row) for row in range(len(picked)))
        for stream, event in settle(scheduler, picked, outputs):
            if isinstance(event, Generated):
                got[stream].append((event.token, event.logprob))
    return list(got.values()), paid


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.0])
def test_streams_are_the_same_whether_or_not_alternatives_are_wanted(
    session: Session, temperature: float
) -> None:
    light, paid = generated(session, temperature, top=0)
    expected, all_paid = generated(session, temperature, top=3)
    assert light == expected
    assert 0 < paid < all_paid == 30 * 12
