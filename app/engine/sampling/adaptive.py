"""Draws tokens from an adaptive softmax: first from its head, where an entry stands for each tail.

Most draws end there, so that a row's tails, the widest products of all, are computed for few rows:
the graph computes them only where a draw may need them (see `TailTerms`), by terms that are made
here before the batch runs. The draw itself, after the batch, is exact. At a temperature below 1 the
mass that a head gives a tail is an upper bound of its tokens', so a draw that falls in between is
rejected, once, and repeated with all tokens (von Neumann 1951).
"""

from __future__ import annotations

import logging
import math

import numpy as np

from app.engine.sampling.distributions import NextDistributions, span
from app.engine.sampling.draw import (
    Sampling,
    block_sums,
    draw_one,
    empty_masses,
    one_block_sums,
    one_mass,
    one_reached,
    plain_mass,
    reached,
    sample,
    uniform,
)
from model.core.flat_batch import ALWAYS, TailTerms
from model.core.graph import HELD_TOKENS

_log = logging.getLogger(__name__)
_MARGIN = 1e-5
"""Probability by which rounding may move a draw across a bound."""
_COLDEST = 1e6
"""More than any ratio of probabilities that could matter."""

Draw = tuple[Sampling, int]
"""How a stream's token is drawn: a sampling `drawn_head_first`, and the number of tokens so far."""


def tail_terms(draws: list[Draw | None], tail_count: int) -> TailTerms:
    """The terms of M rows for that many tails; None for a row whose full distribution is wanted.

    With u uniform, p(t) the tails' probability together, p(b) that of the banned tokens and p(m)
    that of the most probable other token, a draw needs the tails where, at temperature 1,
    p(t) >= (1 - u) (1 - p(b)), and below it at most where p(t) >= p(m) ((1 - u) / u)^temperature.
    """
    none = (0.0,) * (1 + HELD_TOKENS + tail_count)
    every = (1.0,) * tail_count
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
            weights.append((-_ratio(sampling, position), *(0.0,) * HELD_TOKENS, *every))
            floors.append(-_MARGIN)
    table = np.array(weights, np.float32).reshape(len(weights), len(none))
    return TailTerms(table, np.array(floors, np.float32))


def _ratio(sampling: Sampling, position: int) -> float:
    """The least ratio of the tails' probability to the most probable token's that needs tails."""
    if sampling.temperature == 0:
        return 1.0
    share = uniform(sampling.seed, sampling.choice, position)
    left = max(1.0 - share - _MARGIN, 0.0)  # tempered masses are rounded too
    return min(math.pow(left / max(share, 1 / _COLDEST), sampling.temperature), _COLDEST)


def draw(distributions: NextDistributions, rows: list[int], draws: list[Draw]) -> list[int]:
    """The tokens drawn for n streams; rows: of `distributions`, one for each."""
    warm = [index for index, (sampling, _) in enumerate(draws) if sampling.temperature]
    if len(warm) == len(draws):
        return _Batch(distributions, rows, draws).tokens()
    tokens = [
        0 if sampling.temperature else _most_probable(distributions, row, sampling)
        for row, (sampling, _) in zip(rows, draws, strict=True)
    ]
    if warm:
        some = _Batch(distributions, [rows[index] for index in warm], [draws[i] for i in warm])
        for index, token in zip(warm, some.tokens(), strict=True):
            tokens[index] = token
    return tokens


def _most_probable(distributions: NextDistributions, row: int, sampling: Sampling) -> int:
    """Equal ones by rising id."""
    head = distributions.head[row, : distributions.common].copy()
    head[list(sampling.banned)] = -np.inf
    token = int(head.argmax())
    if not distributions.has_tails(row):
        return token
    largest = head[token]
    for number, bounds in enumerate(distributions.tails):
        tail = distributions.tail(row, number)
        best = int(tail.argmax())
        if tail[best] > largest:
            token, largest = bounds.low + best, tail[best]
    return token


class _Batch:
    """Draws of several streams at temperatures above 0."""

    def __init__(
        self, distributions: NextDistributions, rows: list[int], draws: list[Draw]
    ) -> None:
        self.distributions, self.rows, self.draws = distributions, rows, draws
        self.columns: list[int] = []
        """Of the head, where each draw ended."""
        self.rests: list[float] = []
        """The mass that each draw still has to reach inside its column."""
        self.repeated: list[int] = []
        """Draws that start again with all tokens."""

    def tokens(self) -> list[int]:
        """The token of each draw."""
        (self._draw_one if len(self.rows) == 1 else self._draw_many)()
        tokens = list(self.columns)
        for number in range(len(self.distributions.tails)):
            self._draw_in_tail(number, tokens)
        for index in self.repeated:
            tokens[index] = _from_all(self.distributions, self.rows[index], *self.draws[index])
        return tokens

    def _draw_one(self) -> None:
        drawn = draw_one(self.distributions.head[self.rows[0]], *self.draws[0])
        column, rest = drawn or (0, 0.0)
        self.columns, self.rests = [column], [rest]
        self.repeated = [] if drawn else [0]  # banned tokens had all of the mass

    def _draw_many(self) -> None:
        head = self.distributions.head[span(self.rows)]
        masses = empty_masses(*head.shape)
        plain_mass(head, [sampling for sampling, _ in self.draws], masses[:, : head.shape[1]])
        totals = block_sums(masses)
        shares = np.array([uniform(s.seed, s.choice, position) for s, position in self.draws])
        columns, rests = reached(masses, totals, shares * totals[:, -1])
        self.columns, self.rests = columns.tolist(), rests.tolist()
        self.repeated = np.flatnonzero(totals[:, -1] == 0).tolist()

    def _draw_in_tail(self, number: int, tokens: list[int]) -> None:
        """Replaces the column of a tail by a token of it, for all draws that ended there."""
        distributions = self.distributions
        column = distributions.common + number
        ended = [index for index, other in enumerate(self.columns) if other == column]
        missing = [index for index in ended if not distributions.has_tails(self.rows[index])]
        if missing:  # rounding of more than the margin, which has never been seen
            _log.error("draws of %d streams ended in a tail that was not computed", len(missing))
            for index in missing:
                tokens[index] = _most_probable_common(distributions, self.rows[index])
            ended = [index for index in ended if index not in missing]
        if not ended:
            return
        wanted = [(self.rows[i], self.draws[i][0].temperature, self.rests[i]) for i in ended]
        bounds = distributions.tails[number]
        for index, token in zip(ended, _in_tail(distributions, number, wanted), strict=True):
            if token == bounds.size:
                self.repeated.append(index)
            tokens[index] = bounds.low + token


def _in_tail(
    distributions: NextDistributions, number: int, wanted: list[tuple[int, float, float]]
) -> list[int]:
    """Tokens of a tail, counted from its first; its size for a row whose tail has too little mass.

    wanted: of each row the temperature, and the mass that is to be reached.
    """
    size = distributions.tails[number].size
    if len(wanted) == 1:
        ((row, temperature, rest),) = wanted
        mass = one_mass(distributions.tail(row, number), temperature)
        running = one_block_sums(mass)
        return [one_reached(mass, running, rest)[0] if rest < running[-1] else size]
    masses = empty_masses(len(wanted), size)
    for mass, (row, temperature, _) in zip(masses, wanted, strict=True):
        tail = distributions.tail(row, number)
        np.exp(tail if temperature == 1 else tail / np.float32(temperature), out=mass[:size])
    rests = np.array([rest for _, _, rest in wanted])
    sums = block_sums(masses)
    inside = rests < sums[:, -1]
    tokens: list[int] = np.where(inside, reached(masses, sums, rests)[0], size).tolist()
    return tokens


def _most_probable_common(distributions: NextDistributions, row: int) -> int:
    """The most probable token of the head that is never banned."""
    return int(distributions.head[row, HELD_TOKENS : distributions.common].argmax()) + HELD_TOKENS


def _from_all(distributions: NextDistributions, row: int, sampling: Sampling, position: int) -> int:
    """A second draw, from all tokens."""
    logprobs = distributions.full([row])
    drawn = draw_one(logprobs[0], sampling, position, attempt=1)
    return drawn[0] if drawn else sample(logprobs, [sampling], [range(position)])[0]
