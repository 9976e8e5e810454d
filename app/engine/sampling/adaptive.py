"""Drawing from an adaptive softmax: first from its head, where an entry stands for each tail.

Most draws end there, so that a row's tails, the widest products of all, are computed for few: the
graph asks whether a draw can need them (see `flat_batch.TailTerms`), by terms that are made here
before the batch runs. The draw itself, behind the batch, is exact. At a temperature below 1 the
mass that a head gives a tail is an upper bound of its tokens', so a draw that falls in between is
rejected, once, and drawn again from all tokens (von Neumann 1951).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np

from app.engine.sampling.distributions import Following, span
from app.engine.sampling.draw import (
    BLOCK,
    Sampling,
    block_sums,
    one_block_sums,
    one_mass,
    one_reached,
    reached,
    sample,
    uniform,
)
from model.core.flat_batch import ALWAYS, TailTerms
from model.core.graph import HELD_TOKENS, Floats

_log = logging.getLogger(__name__)
_MARGIN = 1e-5
"""Probability by which rounding may put a draw on the other side of a bound."""
_COLDEST = 1e6
"""More than any ratio of probabilities that could matter."""

_NOT_HELD = [0.0] * HELD_TOKENS

Draw = tuple[Sampling, int]
"""What a stream's token is drawn by: a sampling `by_cluster`, and how many tokens it has."""


def tail_terms(draws: Sequence[Draw | None], clusters: int) -> TailTerms:
    """The terms of M rows for so many tails; None for a row that is wanted whole.

    With u uniform, p(t) the tails' probability together, p(b) that of the banned tokens and p(m)
    the likeliest other token's, a draw needs the tails where, at temperature 1,
    p(t) >= (1 - u) (1 - p(b)), and below it at most where p(t) >= p(m) ((1 - u) / u)^temperature.
    """
    none = (0.0,) * (1 + HELD_TOKENS + clusters)
    every = (1.0,) * clusters
    weights, floors = [], []
    for drawn in draws:
        if drawn is None:
            weights.append(none)
            floors.append(ALWAYS)
            continue
        sampling, position = drawn
        if sampling.temperature == 1:
            left = 1.0 - uniform(sampling.seed, sampling.choice, position)
            held = [left if token in sampling.banned else 0.0 for token in range(HELD_TOKENS)]
            weights.append((0.0, *held, *every))
            floors.append(left - _MARGIN)
        else:
            weights.append((-_ratio(sampling, position), *_NOT_HELD, *every))
            floors.append(-_MARGIN)
    table = np.array(weights, np.float32).reshape(len(weights), len(none))
    return TailTerms(table, np.array(floors, np.float32))


def _ratio(sampling: Sampling, position: int) -> float:
    """How many times the likeliest token's probability that of the tails must be."""
    if sampling.temperature == 0:
        return 1.0
    share = uniform(sampling.seed, sampling.choice, position)
    left = max(1.0 - share - _MARGIN, 0.0)  # tempered masses are rounded too
    return min(math.pow(left / max(share, 1 / _COLDEST), sampling.temperature), _COLDEST)


def draw(following: Following, rows: Sequence[int], draws: Sequence[Draw]) -> list[int]:
    """The tokens chosen for n streams; rows: of `following`, one for each."""
    warm = [place for place, (sampling, _) in enumerate(draws) if sampling.temperature]
    if len(warm) == len(draws):
        return _drawn(following, rows, draws)
    chosen = [
        0 if sampling.temperature else _most_probable(following, row, sampling)
        for row, (sampling, _) in zip(rows, draws, strict=True)
    ]
    if warm:
        own = [rows[place] for place in warm], [draws[place] for place in warm]
        for place, token in zip(warm, _drawn(following, *own), strict=True):
            chosen[place] = token
    return chosen


def _most_probable(following: Following, row: int, sampling: Sampling) -> int:
    """Equal ones by rising id."""
    head = following.head[row, : following.common].copy()
    head[list(sampling.banned)] = -np.inf
    token = int(head.argmax())
    if not following.has_tails(row):
        return token
    largest = head[token]
    for number, cluster in enumerate(following.clusters):
        tail = following.tail(row, number)
        best = int(tail.argmax())
        if tail[best] > largest:
            token, largest = cluster.low + best, tail[best]
    return token


def _drawn(following: Following, rows: Sequence[int], draws: Sequence[Draw]) -> list[int]:
    shares = [uniform(sampling.seed, sampling.choice, position) for sampling, position in draws]
    if len(rows) == 1:
        sampling, _ = draws[0]
        mass = one_mass(following.head[rows[0]], sampling.temperature, sampling.banned)
        sums = one_block_sums(mass)
        total = float(sums[-1])
        column, rest = one_reached(mass, sums, shares[0] * total) if total else (0, 0.0)
        tokens, left, lost = [column], [rest], [] if total else [0]
    else:
        masses = _masses(following, rows, [sampling for sampling, _ in draws])
        totals = block_sums(masses)
        columns, rests = reached(masses, totals, np.array(shares) * totals[:, -1])
        tokens, left = columns.tolist(), rests.tolist()
        lost = np.flatnonzero(totals[:, -1] == 0).tolist()  # banned tokens had all of it
    ended = list(tokens)  # columns, where some tokens are ids in the end
    for number, cluster in enumerate(following.clusters):
        column = following.common + number
        places = [place for place, found in enumerate(ended) if found == column]
        missing = [place for place in places if not following.has_tails(rows[place])]
        if missing:  # rounding of more than the margin, which has never been seen
            _log.error("draws of %d streams ended in a tail that was not computed", len(missing))
            for place in missing:
                tokens[place] = _commonest(following, rows[place])
            places = [place for place in places if place not in missing]
        if not places:
            continue
        inside = [(rows[place], draws[place][0].temperature, left[place]) for place in places]
        for place, token in zip(places, _in_tail(following, number, inside), strict=True):
            if token == cluster.size:
                lost.append(place)
            tokens[place] = cluster.low + token
    for place in lost:
        tokens[place] = _again(following, rows[place], *draws[place])
    return tokens


def _masses(following: Following, rows: Sequence[int], samplings: list[Sampling]) -> Floats:
    """Of the head's columns at the temperatures, but for a factor: float32 [n, columns + fill]."""
    head = following.head[span(rows)]
    columns = head.shape[1]
    flat = np.empty((len(rows), -(-columns // BLOCK) * BLOCK), np.float32)
    flat[:, columns:] = 0.0
    mass = flat[:, :columns]
    if any(sampling.temperature != 1 for sampling in samplings):
        heats = np.array([sampling.temperature for sampling in samplings], np.float32)
        head = head / heats[:, None]
    np.exp(head, out=mass)
    for token in range(HELD_TOKENS):
        held = [place for place, s in enumerate(samplings) if token in s.banned]
        mass[held if len(held) < len(rows) else slice(None), token] = 0.0
    return flat


def _in_tail(
    following: Following, number: int, wanted: list[tuple[int, float, float]]
) -> list[int]:
    """Tokens of a tail, counted from its first; its size for a row whose tail has too little mass.

    wanted: of each row the temperature, and the mass that is to be reached.
    """
    size = following.clusters[number].size
    if len(wanted) == 1:
        ((row, temperature, rest),) = wanted
        alone = one_mass(following.tail(row, number), temperature)
        running = one_block_sums(alone)
        return [one_reached(alone, running, rest)[0] if rest < running[-1] else size]
    masses = np.empty((len(wanted), -(-size // BLOCK) * BLOCK), np.float32)
    masses[:, size:] = 0.0
    for mass, (row, temperature, _) in zip(masses, wanted, strict=True):
        tail = following.tail(row, number)
        np.exp(tail if temperature == 1 else tail / np.float32(temperature), out=mass[:size])
    left = np.array([left for _, _, left in wanted])
    sums = block_sums(masses)
    tokens: list[int] = np.where(left < sums[:, -1], reached(masses, sums, left)[0], size).tolist()
    return tokens


def _commonest(following: Following, row: int) -> int:
    """The likeliest token of the head that is never banned."""
    return int(following.head[row, HELD_TOKENS : following.common].argmax()) + HELD_TOKENS


def _again(following: Following, row: int, sampling: Sampling, position: int) -> int:
    """A second draw, from all tokens."""
    whole = following.whole([row])
    mass = one_mass(whole[0], sampling.temperature, sampling.banned)
    sums = one_block_sums(mass)
    if not sums[-1]:
        (token,) = sample(whole, [sampling], [range(position)])
        return token
    share = uniform(sampling.seed, sampling.choice, position, 1)
    return one_reached(mass, sums, share * float(sums[-1]))[0]
