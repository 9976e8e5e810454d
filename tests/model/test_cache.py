"""The cache language model: its probabilities, against the formula written out."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from model import cache
from model.cache import BLOCK, adapted

TOKENS = st.lists(st.integers(0, 6), min_size=2, max_size=60)


def slowly(ids: list[int], place: int, p: float, base: int = 0) -> float:
    """The docstring's formula, counted anew for one token."""
    n = place - base
    if n:
        share = cache._SHARE * n / (n + cache._HALF)
        p = (1 - share) * p + share * ids[base:place].count(ids[place]) / n
    for length, (strength, discount) in enumerate(cache._ORDERS, 1):
        if place - base < length:
            break
        context = ids[place - length : place]
        followed = Counter(
            ids[n] for n in range(base + length, place) if ids[n - length : n] == context
        )
        total, types = sum(followed.values()), len(followed)
        pair = max(followed[ids[place]] - discount, 0)
        p = (pair + (strength + discount * types) * p) / (total + strength)
    return p


@given(TOKENS, st.data())
def test_the_formula(ids: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(ids) - 1))
    drawn = st.floats(-20, 0, width=32)
    logprobs = data.draw(st.lists(drawn, min_size=count, max_size=count))
    found = adapted(np.array(ids), np.array(logprobs, np.float32))
    first = len(ids) - count
    wanted = [np.log(slowly(ids, first + n, np.exp(p))) for n, p in enumerate(logprobs)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@given(TOKENS, st.integers(0, 2**32 - 1))
def test_the_probabilities_of_all_tokens_add_up_to_one(ids: list[int], seed: int) -> None:
    network = np.random.default_rng(seed).dirichlet(np.ones(7))
    each = [
        adapted(np.array([*ids, token]), np.log(network[token : token + 1]).astype(np.float32))
        for token in range(7)
    ]
    assert np.isclose(np.exp(np.concatenate(each)).sum(), 1, atol=1e-5)


def test_a_name_that_was_said_is_expected_again_and_what_is_new_hardly_loses() -> None:
    name, other = [90, 91], list(range(2, 42))
    ids = np.array([1, *name, *other, *name, 50])
    network = np.full(len(ids) - 1, np.log(1e-4), np.float32)
    gained = adapted(ids, network) - network
    assert gained[-2] > 3  # 91 behind the second 90
    assert np.abs(gained[: len(other)]).max() < 0.03  # nothing was said before
    assert -1 < gained[-1] < 0  # 50, where 2 stood the last time


def test_long_texts_count_from_fixed_blocks_wherever_their_scored_part_begins() -> None:
    rng = np.random.default_rng(5)
    ids = rng.integers(0, 50, 3 * BLOCK + 500)
    network = rng.uniform(-9, 0, len(ids) - 1).astype(np.float32)
    whole = adapted(ids, network)
    listed = ids.tolist()
    for place in (BLOCK - 1, BLOCK, 2 * BLOCK - 1, 2 * BLOCK, 3 * BLOCK + 7):
        base = max(0, (place // BLOCK - 1) * BLOCK)
        wanted = slowly(listed, place, float(np.exp(network[place - 1])), base)
        assert np.isclose(whole[place - 1], np.log(wanted), atol=1e-6)
    for count in (1, 400, BLOCK, 2 * BLOCK + 3):
        np.testing.assert_array_equal(adapted(ids, network[-count:]), whole[-count:])
    # what lies further back than the block before makes no difference
    np.testing.assert_array_equal(adapted(ids[2 * BLOCK :], network[-500:]), whole[-500:])
