"""A cache language model: what a text has said so far, mixed into the network's probabilities.

A name that has occurred is likely to occur again, with the same word behind it: more than a network
with a bounded context can know (Kuhn and De Mori 1990; of n-grams: Jelinek et al. 1991). That a
frequent word occurs again says little. So counts are weighed by r(w), the token's place in the
order of frequency, which its id is. First the text's own words have a small share:

    p(w) = (1 - l) p_network(w) + l c(w) u(w) / n,    n = sum of c(w) u(w),  l = s n / (n + m)

Then its n-grams are smoothed with that at the bottom, for contexts h of one token, then of two, as
by Teh 2006 (section 3, eq. 3, one table a dish), but for the weights g:

    p(w | h) = (g(w) max(c(h w) - d, 0) + (a(h) + c(h) - k(h)) p(w | h')) / (c(h) + a(h)),
    k(h) = sum of g(w) max(c(h w) - d, 0),    p(w | h) = p(w | h') where h is new

c counts what stood before the token, h' is a token shorter; u(w) and g(w) are min(1, (r(w) / R)^e).
a(h) = a (r(h) / 1000)^-b for one token, 0 for two: what follows a rare token is soon known. These
are probabilities: over all tokens they add up to 1.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from model.core.graph import Floats, Indices

Doubles = npt.NDArray[np.float64]

FORMULA = 2
"""Counts the rules and numbers below: another gives other scores."""
BLOCK = 4096
"""Tokens are counted from up to a block before the block of the token that is predicted, so that
memory is bounded and the counts do not depend on how a text is cut."""
_SHARE, _HALF = 0.03, 1.0
"""s and m. All these numbers were chosen on validation text: WikiText-2's, Wikipedia's, books'."""
_WORDS, _FOLLOWERS = (6000.0, 0.6), (250.0, 0.4)
"""R and e of u and of g."""
_STRENGTH, _SLOPE = 0.4, 1.1
"""a and b."""
_DISCOUNTS = (0.8, 0.86)
"""d for contexts of one token and of two."""
_FEW = 1000
"""The rank at which a(h) is a."""
_SMALLEST = np.finfo(np.float64).tiny


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
        window, seen = ids[base:end], slice(start - base, None)
        p = np.exp(logprobs[own].astype(np.float64))
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
            # of two tokens 0, but where they are new
            strength = _strengths(window) if length == 1 else (total == 0).astype(np.float64)
            said = weights * np.maximum(pair - discount, 0.0)
            p = (said[seen] + (strength + total - kept)[seen] * p) / (strength + total)[seen]
        found[own] = np.log(np.clip(p, _SMALLEST, 1.0))  # a sum may be beyond 1 in its last digit
    return found


def following(ids: Indices, logprobs: Floats) -> Floats:
    """The log-probabilities of every token behind a text with the cache, in nats, float32 [V].

    ids: int64 [n], the text with all that stands in front of it, n > 0. logprobs: float32 [V], the
    network's. Each is what `adapted` gives for that token.
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
    matches = np.ones(len(window) - 1, np.bool_)  # of the tokens in front of each but the first
    for length, discount in enumerate(_DISCOUNTS[: len(window)], 1):
        matches[length - 1 :] &= window[: len(window) - length] == window[-length]
        matches[: length - 1] = False
        behind = window[1:][matches]
        strength = 1.0 if len(behind) == 0 else 0.0
        if length == 1:
            strength = _STRENGTH * ((window[-1] + 1) / _FEW) ** -_SLOPE
        kept = weights * np.maximum(np.bincount(behind, minlength=len(p)) - discount, 0.0)
        p = (kept + (strength + len(behind) - kept.sum()) * p) / (strength + len(behind))
    found: Floats = np.log(np.clip(p, _SMALLEST, 1.0)).astype(np.float32)
    return found


def _longer(contexts: Indices, ids: Indices, length: int) -> Indices:
    """Doubles of the contexts of `length` tokens in front of each token, int64 [n], made of those
    one token shorter."""
    before = np.full(len(ids), -1, np.int64)  # in front of the text: as if a token of its own
    before[length:] = ids[:-length]
    return _numbered(contexts, before)


def _weights(ids: Indices, rank: float, exponent: float) -> Doubles:
    """u or g of tokens, float64 [n]: 1 from a rank on, and a power of the rank before it."""
    return np.minimum(1.0, ((ids + 1) / rank) ** exponent)


def _strengths(ids: Indices) -> Doubles:
    """a(h) of the token in front of each, float64 [n]."""
    ranks = np.ones(len(ids))
    ranks[1:] = ids[:-1] + 1
    return _STRENGTH * (ranks / _FEW) ** -_SLOPE


def _counts(
    contexts: Indices, ids: Indices, weights: Doubles, discount: float
) -> tuple[Indices, Indices, Doubles]:
    """For each token what came before it: c(h w) and c(h), int64 [n], and k(h), float64 [n]."""
    pair, _, _ = _earlier(_numbered(contexts, ids))
    total, order, firsts = _earlier(contexts)
    kept = (weights * np.where(pair == 0, 1.0 - discount, 1.0))[order]  # by each one's own coming
    before = np.cumsum(kept) - kept
    sums = np.empty(len(ids))
    sums[order] = before - before[firsts]
    return pair, total, sums


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
    """Doubles below n for the pairs of two lists of n, int64 [n]; `other` is at least -1."""
    pairs = one * (other.max(initial=0) + 2) + other + 1
    return np.asarray(np.unique(pairs, return_inverse=True)[1], np.int64)
