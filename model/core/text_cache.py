"""A cache language model: the text so far, mixed into the network's probabilities.

A name that has occurred is likely to occur again, followed by the same word: a network with a
bounded context cannot know this (Kuhn and De Mori 1990; of n-grams: Jelinek et al. 1991). That a
frequent word occurs again says little. So counts are weighted by r(w), the token's rank by
frequency, which is its id. First, the words of the text have a small share:

    p(w) = (1 - l) p_network(w) + l c(w) u(w) / n,    n = sum of c(w) u(w),  l = s n / (n + m)

Then its n-grams are smoothed on top of that, for contexts h of one token, then of two, as by Teh
2006 (section 3, eq. 3, one table a dish), but with weights g:

    p(w | h) = (g(w) max(c(h w) - d, 0) + (a(h) + c(h) - k(h)) p(w | h')) / (c(h) + a(h)),
    k(h) = sum of g(w) max(c(h w) - d, 0),    p(w | h) = p(w | h') where h is new

c counts occurrences before the token, h' is one token shorter; u(w) and g(w) are
min(1, (r(w) / R)^e). a(h) = a (r(h) / 1000)^-b for one token, 0 for two: few occurrences tell what
comes after a rare token. Over all tokens these probabilities add up to 1.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from model.core.graph import Floats, Indices

Doubles = npt.NDArray[np.float64]

FORMULA = 2
"""The version of the rules and numbers below: another version gives other scores."""
BLOCK = 4096
"""Counting starts one block before the block of the predicted token, so that memory is bounded and
the counts do not depend on how a text is cut."""
_SHARE, _HALF = 0.03, 1.0
"""s and m. All these numbers were chosen on validation text: WikiText-2's, Wikipedia's, books'."""
_WORDS, _FOLLOWERS = (6000.0, 0.6), (250.0, 0.4)
"""R and e of u and of g."""
_STRENGTH, _SLOPE = 0.4, 1.1
"""a and b."""
_DISCOUNTS = (0.8, 0.86)
"""d for contexts of one token and of two."""
_FEW = 1000
"""The rank r(h) at which a(h) = a."""
_SMALLEST = np.finfo(np.float64).tiny


def with_cache(ids: Indices, logprobs: Floats) -> Floats:
    """Log-probabilities with the cache, in nats, float32 [m].

    ids: int64 [n], the context and the text. logprobs: float32 [m], the network's, of the last m
    tokens of `ids`, m < n.
    """
    mixed = np.empty(len(logprobs), np.float32)
    first = len(ids) - len(logprobs)
    for begin in range(first - first % BLOCK, len(ids), BLOCK):
        base, end = max(0, begin - BLOCK), min(begin + BLOCK, len(ids))
        start = max(begin, first)
        scored = slice(start - first, end - first)
        window, seen = ids[base:end], slice(start - base, None)
        p = np.exp(logprobs[scored].astype(np.float64))
        contexts = np.zeros(len(window), np.int64)
        weights = _weights(window, *_WORDS)
        word, _, mass = _counts(contexts, window, weights, 0.0)
        share = (_SHARE * mass / (mass + _HALF))[seen]
        known = np.divide(weights * word, mass, out=np.zeros(len(window)), where=mass > 0)[seen]
        p = (1 - share) * p + share * known
        weights = _weights(window, *_FOLLOWERS)
        for length, discount in enumerate(_DISCOUNTS, 1):
            contexts = _longer(contexts, window, length)
            pair, total, kept = _counts(contexts, window, weights, discount)
            # a(h) of two tokens is 0, except for a new context
            strength = _strengths(window) if length == 1 else (total == 0).astype(np.float64)
            said = weights * np.maximum(pair - discount, 0.0)
            p = (said[seen] + (strength + total - kept)[seen] * p) / (strength + total)[seen]
        mixed[scored] = np.log(np.clip(p, _SMALLEST, 1.0))  # rounding may take a sum above 1
    return mixed


def next_with_cache(ids: Indices, logprobs: Floats) -> Floats:
    """Log-probabilities of every token after a text, with the cache, in nats, float32 [V].

    ids: int64 [n], the context and the text, n > 0. logprobs: float32 [V], the network's.
    `with_cache` gives the same number for each token.
    """
    begin = len(ids) - len(ids) % BLOCK
    window = ids[max(0, begin - BLOCK) :]
    tokens = np.arange(len(logprobs))
    p = np.exp(logprobs.astype(np.float64))
    said = _weights(tokens, *_WORDS) * np.bincount(window, minlength=len(p))
    mass = said.sum()
    share = _SHARE * mass / (mass + _HALF)
    p = (1 - share) * p + share * said / mass
    weights = _weights(tokens, *_FOLLOWERS)
    # whether the context before each token but the first is the one before the next token
    matches = np.ones(len(window) - 1, np.bool_)
    for length, discount in enumerate(_DISCOUNTS[: len(window)], 1):
        matches[length - 1 :] &= window[: len(window) - length] == window[-length]
        matches[: length - 1] = False
        seen = window[1:][matches]
        strength = 1.0 if len(seen) == 0 else 0.0
        if length == 1:
            strength = _STRENGTH * ((window[-1] + 1) / _FEW) ** -_SLOPE
        kept = weights * np.maximum(np.bincount(seen, minlength=len(p)) - discount, 0.0)
        p = (kept + (strength + len(seen) - kept.sum()) * p) / (strength + len(seen))
    mixed: Floats = np.log(np.clip(p, _SMALLEST, 1.0)).astype(np.float32)
    return mixed


def _longer(contexts: Indices, ids: Indices, length: int) -> Indices:
    """Numbers of the contexts of `length` tokens before each token, int64 [n], from those of the
    contexts one token shorter."""
    before = np.full(len(ids), -1, np.int64)  # before the text: as if it were a special token
    before[length:] = ids[:-length]
    return _pair_numbers(contexts, before)


def _weights(ids: Indices, rank: float, exponent: float) -> Doubles:
    """u or g of tokens, float64 [n]: a power of the rank, at most 1."""
    return np.minimum(1.0, ((ids + 1) / rank) ** exponent)


def _strengths(ids: Indices) -> Doubles:
    """a(h) of the token before each, float64 [n]."""
    ranks = np.ones(len(ids))
    ranks[1:] = ids[:-1] + 1
    return _STRENGTH * (ranks / _FEW) ** -_SLOPE


def _counts(
    contexts: Indices, ids: Indices, weights: Doubles, discount: float
) -> tuple[Indices, Indices, Doubles]:
    """c(h w) and c(h), int64 [n], and k(h), float64 [n], of each token: counts before it."""
    pair, _, _ = _earlier(_pair_numbers(contexts, ids))
    total, order, firsts = _earlier(contexts)
    kept = (weights * np.where(pair == 0, 1.0 - discount, 1.0))[order]
    before = np.cumsum(kept) - kept
    sums = np.empty(len(ids))
    sums[order] = before - before[firsts]
    return pair, total, sums


def _earlier(groups: Indices) -> tuple[Indices, Indices, Indices]:
    """For each of n elements, given the numbers of their groups: how many of its group are before
    it; the order by group; in that order the position of its group's first. int64 [n] each."""
    order = np.argsort(groups, kind="stable")
    positions = np.arange(len(groups))
    opens = np.ones(len(groups), np.bool_)
    opens[1:] = np.diff(groups[order]) != 0
    firsts = np.maximum.accumulate(np.where(opens, positions, 0))
    earlier = np.empty_like(groups)
    earlier[order] = positions - firsts
    return earlier, order, firsts


def _pair_numbers(one: Indices, other: Indices) -> Indices:
    """A number below n for each pair of two lists' elements, int64 [n]; `other` is at least -1."""
    pairs = one * (other.max(initial=0) + 2) + other + 1
    return np.asarray(np.unique(pairs, return_inverse=True)[1], np.int64)
