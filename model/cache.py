"""A cache language model: what a text has said so far, mixed into the network's probabilities.

A name that has occurred is likely to occur again, with the same word behind it: more than a network
with a bounded context can know (Kuhn and De Mori 1990; of n-grams: Jelinek et al. 1991). First the
text's own words have a small share, of the n tokens before this one:

    p(w) = (1 - l) p_network(w) + l c(w) / n,    l = s n / (n + m)

Then its n-grams are smoothed as by Teh 2006 (section 3, eq. 3, one table a dish) with that at the
bottom, for contexts h of one token, then of two:

    p(w | h) = (max(c(h w) - d, 0) + (a + d t(h)) p(w | h')) / (c(h) + a)

c counts what stood before the token, t(h) the different tokens that followed h, h' is a token
shorter. These are probabilities: over all tokens they add up to 1.
"""

from __future__ import annotations

import numpy as np

from model.graph import Floats, Indices

BLOCK = 4096
"""Tokens are counted from up to a block before the block of the token that is predicted, so that
memory is bounded and the counts do not depend on how a text is cut."""
_SHARE, _HALF = 0.03, 200
"""s and m. These numbers were chosen on WikiText-2's validation articles."""
_ORDERS = ((3.5, 0.9), (0.4, 0.8))
"""a and d for contexts of one token and of two."""


def adapted(ids: Indices, logprobs: Floats) -> Floats:
    """Log-probabilities with the cache, in nats, float32 [m].

    ids: int64 [n], the text with all that stands in front of it. logprobs: float32 [m], the
    network's, of the last m tokens of `ids`, m < n.
    """
    found = np.empty(len(logprobs), np.float32)
    first = len(ids) - len(logprobs)
    for begin in range(first - first % BLOCK, len(ids), BLOCK):
        base, end = max(0, begin - BLOCK), min(begin + BLOCK, len(ids))
        start = max(begin, first)
        own = slice(start - first, end - first)
        p = np.exp(logprobs[own].astype(np.float64))
        contexts = np.zeros(end - base, np.int64)
        word, before, _ = (n[start - base :] for n in _counts(contexts, ids[base:end]))
        share = _SHARE * before / (before + _HALF)
        p = (1 - share) * p + share * word / np.maximum(before, 1)
        for length, (strength, discount) in enumerate(_ORDERS, 1):
            contexts = _longer(contexts, ids[base:end], length)
            pair, total, types = (n[start - base :] for n in _counts(contexts, ids[base:end]))
            left = np.maximum(pair - discount, 0.0) + (strength + discount * types) * p
            p = left / (total + strength)
        found[own] = np.log(p)
    return found


def _longer(contexts: Indices, ids: Indices, length: int) -> Indices:
    """Numbers of the contexts of `length` tokens in front of each token, int64 [n], made of those
    one token shorter."""
    before = np.full(len(ids), -1, np.int64)  # in front of the text: as if a token of its own
    before[length:] = ids[:-length]
    return _numbered(contexts, before)


def _counts(contexts: Indices, ids: Indices) -> tuple[Indices, Indices, Indices]:
    """For each token what came before it: c(h w), c(h) and t(h), int64 [n] each."""
    pair, _, _ = _earlier(_numbered(contexts, ids))
    total, order, firsts = _earlier(contexts)
    new = (pair == 0)[order].astype(np.int64)
    before = np.cumsum(new) - new
    types = np.empty_like(total)
    types[order] = before - before[firsts]
    return pair, total, types


def _earlier(groups: Indices) -> tuple[Indices, Indices, Indices]:
    """How many of each one's group came before it; the order by group, and in that order the place
    of each one's first. int64 [n] each, of the numbers of n groups."""
    order = np.argsort(groups, kind="stable")
    places = np.arange(len(groups))
    opens = np.ones(len(groups), np.bool_)
    opens[1:] = np.diff(groups[order]) != 0
    firsts = np.maximum.accumulate(np.where(opens, places, 0))
    earlier = np.empty_like(groups)
    earlier[order] = places - firsts
    return earlier, order, firsts


def _numbered(one: Indices, other: Indices) -> Indices:
    """Numbers below n for the pairs of two lists of n, int64 [n]; `other` is at least -1."""
    pairs = one * (other.max(initial=0) + 2) + other + 1
    return np.asarray(np.unique(pairs, return_inverse=True)[1], np.int64)
