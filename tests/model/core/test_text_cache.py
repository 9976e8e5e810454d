"""The cache language model: its probabilities, against the formula written out."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.core import text_cache as cache
from model.core.text_cache import BLOCK, next_with_cache, with_cache

KNOWN = (0, 4, 60, 249, 900, 5000, 9000)
"""Token ids, the frequent ones first: what is weighed differently."""
TOKENS = st.lists(st.sampled_from(KNOWN), min_size=2, max_size=60)


def weight(token: int, numbers: tuple[float, float]) -> float:
    rank, exponent = numbers
    return min(1.0, float((token + 1) / rank) ** exponent)


def slowly(ids: list[int], place: int, p: float, base: int = 0) -> float:
    """The docstring's formula, counted anew for one token."""
    token = ids[place]
    mass = sum(weight(earlier, cache._WORDS) for earlier in ids[base:place])
    if mass:
        share = cache._SHARE * mass / (mass + cache._HALF)
        said = ids[base:place].count(token) * weight(token, cache._WORDS)
        p = (1 - share) * p + share * said / mass
    for length, discount in enumerate(cache._DISCOUNTS, 1):
        if place - base < length:
            break
        context = ids[place - length : place]
        followed = Counter(
            ids[n] for n in range(base + length, place) if ids[n - length : n] == context
        )
        total = sum(followed.values())
        if not total:
            continue
        kept = {w: weight(w, cache._FOLLOWERS) * max(c - discount, 0) for w, c in followed.items()}
        strength = 0.0
        if length == 1:
            strength = cache._STRENGTH * ((context[0] + 1) / cache._FEW) ** -cache._SLOPE
        left = strength + total - sum(kept.values())
        p = (kept.get(token, 0.0) + left * p) / (total + strength)
    return p


@given(st.lists(st.integers(0, 8), min_size=1, max_size=40), st.integers(0, 2**32 - 1))
def test_every_token_behind_a_text_has_what_it_would_be_scored_with(
    ids: list[int], seed: int
) -> None:
    logits = np.random.default_rng(seed).normal(size=300) * 3
    network = (logits - np.log(np.exp(logits).sum())).astype(np.float32)
    found = next_with_cache(np.array(ids), network)
    assert np.exp(found.astype(np.float64)).sum() == pytest.approx(1, abs=1e-5)
    for token in (0, 3, 8, 9, 299):
        (wanted,) = with_cache(np.array([*ids, token]), network[token : token + 1])
        assert found[token] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("count", [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 5])
def test_a_long_text_is_followed_by_what_its_last_blocks_say(count: int) -> None:
    ids = np.random.default_rng(count).integers(0, 50, count)
    network = np.full(60, -np.log(60), np.float32)
    found = next_with_cache(ids, network)
    for token in range(60):
        (wanted,) = with_cache(np.append(ids, token), network[token : token + 1])
        assert found[token] == pytest.approx(wanted, abs=1e-6)


@given(TOKENS, st.data())
def test_the_formula(ids: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(ids) - 1))
    drawn = st.floats(-20, 0, width=32)
    logprobs = data.draw(st.lists(drawn, min_size=count, max_size=count))
    found = with_cache(np.array(ids), np.array(logprobs, np.float32))
    first = len(ids) - count
    wanted = [np.log(slowly(ids, first + n, np.exp(p))) for n, p in enumerate(logprobs)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@given(TOKENS, st.integers(0, 2**32 - 1))
def test_the_probabilities_of_all_tokens_add_up_to_one(ids: list[int], seed: int) -> None:
    network = np.log(np.random.default_rng(seed).dirichlet(np.ones(len(KNOWN))))
    each = [
        with_cache(np.array([*ids, token]), network[n : n + 1].astype(np.float32))
        for n, token in enumerate(KNOWN)
    ]
    assert np.isclose(np.exp(np.concatenate(each)).sum(), 1, atol=1e-5)


def test_a_name_that_was_said_is_expected_again_and_what_is_new_hardly_loses() -> None:
    name, other = [9000, 9001], list(range(2, 42))
    ids = np.array([1, *name, *other, *name, 50])
    network = np.full(len(ids) - 1, np.log(1e-4), np.float32)
    gained = with_cache(ids, network) - network
    assert gained[-3] > 4  # 9000, which was said
    assert gained[-2] > 6  # 9001 behind the second 9000
    assert np.abs(gained[: len(other)]).max() < 0.035  # nothing was said before
    assert -1 < gained[-1] < 0  # 50, where 2 stood the last time


def test_a_frequent_word_that_was_said_is_expected_hardly_more_than_before() -> None:
    ids = np.array([1, 5, *range(2000, 2040), 5, 9000, *range(3000, 3040), 9000])
    network = np.full(len(ids) - 1, np.log(1e-4), np.float32)
    gained = with_cache(ids, network) - network
    assert gained[41] < 0.3  # 5
    assert gained[-1] > 1.5  # 9000


def test_no_score_is_above_zero_or_infinite() -> None:
    ids = np.tile([5, 9000, 5, 60], 3000)
    for lowest in (0.0, -80.0, -1000.0):
        network = np.where(np.arange(len(ids) - 1) % 3, lowest, 0.0).astype(np.float32)
        found = with_cache(ids, network)
        assert np.isfinite(found).all()
        assert found.max() <= 0


def test_long_texts_count_from_fixed_blocks_wherever_their_scored_part_begins() -> None:
    rng = np.random.default_rng(5)
    ids = rng.integers(0, 50, 3 * BLOCK + 500)
    network = rng.uniform(-9, 0, len(ids) - 1).astype(np.float32)
    whole = with_cache(ids, network)
    listed = ids.tolist()
    for place in (BLOCK - 1, BLOCK, 2 * BLOCK - 1, 2 * BLOCK, 3 * BLOCK + 7):
        base = max(0, (place // BLOCK - 1) * BLOCK)
        wanted = slowly(listed, place, float(np.exp(network[place - 1])), base)
        assert np.isclose(whole[place - 1], np.log(wanted), atol=1e-6)
    for count in (1, 400, BLOCK, 2 * BLOCK + 3):
        np.testing.assert_array_equal(with_cache(ids, network[-count:]), whole[-count:])
    # what lies further back than the block before makes no difference
    np.testing.assert_array_equal(with_cache(ids[2 * BLOCK :], network[-500:]), whole[-500:])


def test_other_scores_have_another_number() -> None:
    """Whoever changes these scores counts `FORMULA` up: the fingerprint has it."""
    ids = np.array([0, *range(4000, 4020), 7, *range(4000, 4020), 7, 4000], np.int64)
    logprobs = np.full(len(ids) - 1, -9.0, np.float32)
    expected = [-9.0002, -9.0286, -6.4850, -1.6864, -1.2077, -2.5223, -1.9418]
    found = with_cache(ids, logprobs)[[0, 20, 21, 22, 40, 41, 42]]
    assert cache.FORMULA == 2
    np.testing.assert_allclose(found, expected, atol=1e-4)
