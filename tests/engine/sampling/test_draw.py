"""Choosing tokens: the right distribution, and a choice that depends on its key alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.sampling.draw import Sampling, uniform
from app.engine.sampling.draw import sample as sample_rows
from app.engine.sequence import top_of

LOGITS = np.array([1.0, 3.0, 2.0, 0.0, -1.0, 2.0], np.float32)
LOGPROBS = (LOGITS - np.log(np.exp(LOGITS).sum())).astype(np.float32)


def sample(row: np.ndarray, sampling: Sampling, position: int) -> int:
    (token,) = sample_rows(row[None], [sampling], [range(position)])
    return token


def frequencies(sampling: Sampling, count: int = 4000) -> np.ndarray:
    drawn = [sample(LOGPROBS, sampling, position) for position in range(count)]
    return np.bincount(drawn, minlength=len(LOGPROBS)) / count


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_the_temperature_says(temperature: float) -> None:
    weights = np.exp(LOGITS / temperature)
    shares = frequencies(Sampling(temperature, 0, 1.0, 1, 0))
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.03)


def test_temperature_zero_takes_the_most_probable() -> None:
    assert sample(LOGPROBS, Sampling(0.0, 0, 1.0, 1, 0), 0) == 1


def test_a_tiny_temperature_does_not_overflow() -> None:
    assert sample(LOGPROBS, Sampling(1e-30, 0, 1.0, 1, 0), 0) == 1


def test_top_k_keeps_the_k_most_probable_lower_ids_first() -> None:
    shares = frequencies(Sampling(1.0, 2, 1.0, 1, 0))
    assert np.flatnonzero(shares).tolist() == [1, 2]  # 2 and 5 are equal
    assert shares[1] == pytest.approx(np.e / (np.e + 1), abs=0.03)


def test_top_p_keeps_the_smallest_set_of_that_mass() -> None:
    mass = np.sort(np.exp(LOGPROBS))[::-1].cumsum()
    shares = frequencies(Sampling(1.0, 0, float(mass[0]) + 0.01, 1, 0))
    assert np.flatnonzero(shares).tolist() == [1, 2]
    assert np.flatnonzero(frequencies(Sampling(1.0, 0, 1e-9, 1, 0))).tolist() == [1]


def test_top_p_is_a_share_of_what_top_k_leaves() -> None:
    share = np.e / (np.e + 1)  # of token 1 among 1 and 2
    assert np.flatnonzero(frequencies(Sampling(1.0, 2, share - 0.01, 1, 0))).tolist() == [1]
    assert np.flatnonzero(frequencies(Sampling(1.0, 2, share + 0.01, 1, 0))).tolist() == [1, 2]


def test_top_p_over_a_large_flat_vocabulary_sees_all_of_it() -> None:
    flat = np.full(5000, -np.log(5000), np.float32)
    drawn = {sample(flat, Sampling(1.0, 0, 0.9, 1, 0), n) for n in range(3000)}
    assert max(drawn) > 3000
    assert max(drawn) <= 4500


def test_a_small_share_of_a_flat_vocabulary_is_found_though_most_draws_miss_it() -> None:
    flat = np.full(5000, -np.log(5000), np.float32)
    drawn = [sample(flat, Sampling(1.0, 0, 0.0019, 1, 0), n) for n in range(300)]
    assert set(drawn) == set(range(10))


def test_a_banned_token_is_never_chosen() -> None:
    banned = Sampling(1.0, 0, 1.0, 1, 0, banned=(1, 5))
    assert not frequencies(banned)[[1, 5]].any()
    assert sample(LOGPROBS, Sampling(0.0, 0, 1.0, 1, 0, banned=(1,)), 0) == 2


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 1000), st.integers(0, 10**6))
def test_a_uniform_number_is_a_function_of_its_key(seed: int, choice: int, position: int) -> None:
    number = uniform(seed, choice, position)
    assert 0 <= number < 1
    assert number == uniform(seed, choice, position)
    assert number != uniform(seed, choice + 1, position)


SAMPLINGS = st.builds(
    Sampling,
    st.sampled_from([0.0, 0.7, 1.0]),
    st.sampled_from([0, 3]),
    st.sampled_from([0.3, 0.9, 1.0]),
    st.integers(0, 100),
    st.integers(0, 3),
    st.sampled_from([(), (5,), (0, 499)]),
)


@given(
    st.integers(0, 100), st.lists(st.tuples(SAMPLINGS, st.integers(0, 50)), min_size=1, max_size=9)
)
def test_a_choice_does_not_depend_on_the_streams_beside_it(
    seed: int, streams: list[tuple[Sampling, int]]
) -> None:
    rows = np.random.default_rng(seed).normal(size=(len(streams), 500)).astype(np.float32)
    together = sample_rows(rows, [s for s, _ in streams], [range(p) for _, p in streams])
    alone = [sample(r.copy(), *stream) for r, stream in zip(rows, streams, strict=True)]
    assert together == alone


@pytest.mark.parametrize("size", [300, 4096, 16_384])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_a_stream_alone_takes_the_short_way_to_the_same_tokens(
    size: int, temperature: float
) -> None:
    rows = np.random.default_rng(size).normal(scale=3, size=(64, size)).astype(np.float32)
    samplings = [Sampling(temperature, 0, 1.0, n, 0, (0, n)) for n in range(64)]
    histories = [range(n) for n in range(64)]
    together = sample_rows(rows, samplings, histories)
    assert together == [sample(rows[n], samplings[n], n) for n in range(64)]


def test_a_stream_whose_banned_token_had_everything_draws_another() -> None:
    row = np.full(300, -np.inf, np.float32)
    row[[7, 8]] = 0.0, -200.0
    assert sample(row, Sampling(1.0, 0, 1.0, 1, 0, (7,)), 0) == 8


@given(st.integers(1, 30), st.integers(0, 5), st.sampled_from([20, 1500, 4096]))
def test_alternatives_are_the_most_probable_best_first(count: int, seed: int, size: int) -> None:
    rows = np.random.default_rng(seed).integers(0, size // 2, (3, size)).astype(np.float32)
    top = top_of(rows, count)
    for row, ids, values in zip(rows, top.ids, top.logprobs, strict=True):
        np.testing.assert_array_equal(values, np.sort(row)[::-1][:count])
        np.testing.assert_array_equal(row[ids], values)
        assert len(set(ids.tolist())) == min(count, size)
        assert ids.tolist() == sorted(range(size), key=lambda n: (-row[n], n))[:count]


@pytest.mark.parametrize("temperature", [1e-30, 0.01, 0.1, 0.5])
def test_a_banned_token_that_is_by_far_the_likeliest_hides_none_of_the_rest(
    temperature: float,
) -> None:
    row = np.full(300, -40.0, np.float32)
    row[5], row[7] = -0.001, -12.0
    before = row.copy()
    assert sample(row, Sampling(temperature, 0, 1.0, 1, 0, banned=(5,)), 0) == 7
    np.testing.assert_array_equal(row, before)
