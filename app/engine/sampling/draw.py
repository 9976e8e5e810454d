"""Draws next tokens from their distributions. Pure; a row's token depends on no other row."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from app.engine.sampling.logits_processors import History, LogitEdits, apply
from model.core.graph import HELD_TOKENS, Floats, Indices

_MassFunction = Callable[[Floats, list["Sampling"], Floats], None]
_LIKELY = 256
"""Candidates sorted first for top_p; they nearly always hold its mass."""
BLOCK = 128
"""Tokens whose masses are summed before one of them is searched for."""
_PLAIN_TEMPERATURE = 0.25
"""A token of probability 1e-6 still has a mass of 1e-24."""
_ATTEMPTS = 8
"""Rejected draws before candidates are sorted; at top_p 0.9 one draw in 10^8 gets there."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """temperature 0 takes the most probable token; top_k 0, top_p 1 and min_p 0 exclude nothing.

    `seed` and `choice` key the random numbers, so that a stream's text depends on them alone.
    """

    temperature: float
    top_k: int
    top_p: float
    seed: int
    choice: int
    banned: tuple[int, ...] = ()
    """Tokens that are never chosen."""
    min_p: float = 0.0
    """Probability, at the temperature and as a share of the largest, that a token must have."""
    edits: LogitEdits | None = None
    """Changes of the distribution before the temperature."""
    drawn_head_first: bool = field(init=False, repr=False, compare=False)
    """Whether tokens are drawn from the head of an adaptive softmax first (see `adaptive`): the
    most probable one, or one of all at a temperature of at most 1."""

    def __post_init__(self) -> None:
        held = all(token < HELD_TOKENS for token in self.banned)
        simple = self.unfiltered if self.temperature else self.edits is None
        object.__setattr__(self, "drawn_head_first", held and simple and self.temperature <= 1)

    @property
    def plain(self) -> bool:
        """Whether probabilities can be used without a factor: no mass would vanish."""
        return self.temperature >= _PLAIN_TEMPERATURE and not self.min_p and self.edits is None

    @property
    def unfiltered(self) -> bool:
        """Whether the first draw counts: only banned tokens are excluded."""
        return self.plain and not self.top_k and self.top_p >= 1


@lru_cache(maxsize=4096)
def uniform(seed: int, choice: int, position: int, attempt: int = 0) -> float:
    """A number in [0, 1) from a counter-based generator: the same key, the same number.

    Cached, since it is needed before a batch and after it.
    """
    key = struct.pack("<QQQQ", seed % 2**64, choice, position, attempt)
    return (int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) >> 11) / 2.0**53


def sample(logprobs: Floats, samplings: list[Sampling], histories: list[History]) -> list[int]:
    """The tokens drawn for n streams, each after the tokens that it has generated.

    logprobs: float32 [n, V]. top_k and top_p are kept by rejection: a token is drawn from all, and
    again if they exclude it. That needs no sorting, and gives their distribution.
    """
    if len(samplings) == 1 and samplings[0].unfiltered:
        drawn_first = draw_one(logprobs[0], samplings[0], len(histories[0]))
        if drawn_first is not None:
            return [drawn_first[0]]
    edited = [(row, s.edits) for row, s in enumerate(samplings) if s.edits is not None]
    if edited:
        logprobs = logprobs.copy()
        apply(logprobs, edited, histories, [sampling.banned for sampling in samplings])
    warm = [row for row, s in enumerate(samplings) if s.temperature]
    tokens = [
        0 if s.temperature else _most_probable(logprobs[row], s) for row, s in enumerate(samplings)
    ]
    if warm:
        masses = _Masses(logprobs, warm, samplings)
        drawn = masses.tokens([len(history) for history in histories])
        for row, token in zip(warm, drawn, strict=True):
            tokens[row] = token
    return tokens


def draw_one(
    row: Floats, sampling: Sampling, position: int, attempt: int = 0
) -> tuple[int, float] | None:
    """What `_Masses` draws for one stream, in fewer steps, and the mass to reach inside it.

    None if the banned tokens had all the mass that float32 can hold.
    """
    mass = one_mass(row, sampling.temperature, sampling.banned)
    sums = one_block_sums(mass)
    total = float(sums[-1])
    if not total:
        return None
    return one_reached(
        mass, sums, uniform(sampling.seed, sampling.choice, position, attempt) * total
    )


def one_mass(row: Floats, temperature: float, banned: tuple[int, ...] = ()) -> Floats:
    """Log-probabilities, float32 [n], as masses (probabilities up to a factor) at a temperature,
    padded with zeros to full blocks."""
    mass: Floats = empty_masses(1, len(row))[0]
    source = row if temperature == 1 else row / np.float32(temperature)
    np.exp(source, out=mass[: len(row)])
    for token in banned:
        mass[token] = 0.0
    return mass


def empty_masses(rows: int, columns: int) -> Floats:
    """Room for masses, float32 [rows, columns and zeros up to full blocks]."""
    masses = np.empty((rows, -(-columns // BLOCK) * BLOCK), np.float32)
    masses[:, columns:] = 0.0
    return masses


def one_block_sums(mass: Floats) -> npt.NDArray[np.float64]:
    """`block_sums` of one row: float32 [blocks * BLOCK] to float64 [blocks]."""
    return np.cumsum(np.einsum("bt->b", mass.reshape(-1, BLOCK)), dtype=np.float64)


def one_reached(mass: Floats, sums: npt.NDArray[np.float64], wanted: float) -> tuple[int, float]:
    """`reached` for one row."""
    block = int(sums.searchsorted(min(wanted, math.nextafter(float(sums[-1]), 0.0)), "right"))
    wanted -= float(sums[block - 1]) if block else 0.0
    within = np.cumsum(mass[block * BLOCK : (block + 1) * BLOCK], dtype=np.float64)
    token = int(within.searchsorted(min(wanted, math.nextafter(float(within[-1]), 0.0)), "right"))
    return block * BLOCK + token, wanted - (float(within[token - 1]) if token else 0.0)


def _most_probable(row: Floats, sampling: Sampling) -> int:
    token = int(row.argmax())
    if token in sampling.banned:
        row = row.copy()
        row[list(sampling.banned)] = -np.inf
        token = int(row.argmax())
    return token


class _Masses:
    """Probabilities, up to a factor, of some rows at their temperatures, and their sums.

    rows: of `logprobs`; samplings: of all its rows. padded: float32 [n, V and zeros up to full
    blocks]. sums: see `block_sums`.
    """

    def __init__(self, logprobs: Floats, rows: list[int], samplings: list[Sampling]) -> None:
        self.rows, self.samplings = rows, [samplings[row] for row in rows]
        size = logprobs.shape[1]
        self.padded = empty_masses(len(rows), size)
        mass = self.padded[:, :size]
        source = logprobs if len(rows) == len(logprobs) else logprobs[rows]
        if all(sampling.plain for sampling in self.samplings):
            plain_mass(source, self.samplings, mass)
        else:
            plain = [index for index, sampling in enumerate(self.samplings) if sampling.plain]
            shifted = [index for index, sampling in enumerate(self.samplings) if not sampling.plain]
            self._fill(plain_mass, source, plain, mass)
            self._fill(_shifted_mass, source, shifted, mass)
        self.sums = block_sums(self.padded)
        lost = np.flatnonzero(self.sums[:, -1] == 0).tolist()
        if lost:  # a banned token had all the mass that float32 can hold
            self._fill(_shifted_mass, source, lost, mass)
            self.sums[lost] = block_sums(self.padded[lost])

    def _fill(self, function: _MassFunction, source: Floats, some: list[int], mass: Floats) -> None:
        """Has a function fill some of the rows."""
        filled = np.empty((len(some), mass.shape[1]), np.float32)
        function(source[some], [self.samplings[index] for index in some], filled)
        mass[some] = filled

    def tokens(self, positions: list[int]) -> list[int]:
        """A token for every row; positions are those of all streams."""
        tokens = [0] * len(self.rows)
        left = list(range(len(self.rows)))
        for attempt in range(_ATTEMPTS):
            shares = [self._share(index, positions, attempt) for index in left]
            rejected = []
            for index, token in zip(left, self._drawn(left, np.array(shares)), strict=True):
                tokens[index] = token
                if not self._accepts(index, token):
                    rejected.append(index)
            left = rejected
            if not left:
                return tokens
        for index in left:
            candidates = _candidates(self.padded[index], self.samplings[index])
            cumulative = np.cumsum(self.padded[index, candidates], dtype=np.float64)
            wanted = self._share(index, positions, _ATTEMPTS) * cumulative[-1:]
            tokens[index] = int(candidates[_first_above(cumulative[None], wanted)[0]])
        return tokens

    def _share(self, index: int, positions: list[int], attempt: int) -> float:
        sampling = self.samplings[index]
        return uniform(sampling.seed, sampling.choice, positions[self.rows[index]], attempt)

    def _drawn(self, some: list[int], shares: npt.NDArray[np.float64]) -> list[int]:
        """By inversion: where a share of the mass is reached."""
        every = len(some) == len(self.sums)
        sums = self.sums if every else self.sums[some]
        mass = self.padded if every else self.padded[some]
        tokens: list[int] = reached(mass, sums, shares * sums[:, -1])[0].tolist()
        return tokens

    def _accepts(self, index: int, token: int) -> bool:
        """Whether top_k or top_p leave a token; equal ones come by rising id."""
        sampling = self.samplings[index]
        if not sampling.top_k and sampling.top_p >= 1:
            return True
        if sampling.top_k and sampling.top_p < 1:
            return False  # a share of what top_k leaves: that takes sorting
        mass = self.padded[index]
        above = mass > mass[token]
        equal = int(np.count_nonzero(mass[:token] == mass[token]))
        if sampling.top_k:
            return int(np.count_nonzero(above)) + equal < sampling.top_k
        before = float(mass[above].sum(dtype=np.float64)) + equal * float(mass[token])
        return before < sampling.top_p * float(self.sums[index, -1])


def plain_mass(source: Floats, samplings: list[Sampling], out: Floats) -> None:
    """Writes masses of log-probabilities, float32 [n, V], to `out`, for `plain` samplings."""
    if any(sampling.temperature != 1 for sampling in samplings):
        temperatures = np.array([sampling.temperature for sampling in samplings], np.float32)
        source = source / temperatures[:, None]
    np.exp(source, out=out)
    out[_banned(samplings)] = 0.0


def _shifted_mass(source: Floats, samplings: list[Sampling], out: Floats) -> None:
    """The same for any temperature and any values, so that a row's largest mass is 1."""
    source, banned = source.copy(), _banned(samplings)
    source[banned] = -np.inf
    np.subtract(source, source.max(1, keepdims=True), out=out)
    temperatures = np.array([sampling.temperature for sampling in samplings])
    with np.errstate(over="ignore"):  # at the lowest temperatures all but the largest are 0
        out /= np.maximum(temperatures, np.finfo(np.float32).tiny).astype(np.float32)[:, None]
    np.exp(out, out=out)
    out[banned] = 0.0
    least = np.array([sampling.min_p for sampling in samplings], np.float32)
    out[out < least[:, None]] = 0.0


def _banned(samplings: list[Sampling]) -> tuple[list[int] | slice, list[int]]:
    """Rows and columns of the tokens that are never chosen."""
    if len({sampling.banned for sampling in samplings}) == 1:
        return slice(None), list(samplings[0].banned)
    entries = [(row, token) for row, s in enumerate(samplings) for token in s.banned]
    return [row for row, _ in entries], [token for _, token in entries]


def block_sums(mass: Floats) -> npt.NDArray[np.float64]:
    """Running sums of the masses of blocks: float32 [n, blocks * BLOCK] to float64 [n, blocks]."""
    blocks = mass.reshape(len(mass), -1, BLOCK)
    # as `sum` over contiguous values, without its checks for other layouts
    return np.cumsum(np.einsum("nbt->nb", blocks), axis=1, dtype=np.float64)


def reached(
    mass: Floats, sums: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]
) -> tuple[Indices, npt.NDArray[np.float64]]:
    """The tokens [n] within whose mass the wanted sums [n] are reached, and the rest of each sum.

    mass: float32 [n, blocks * BLOCK]. sums: its `block_sums`.
    """
    every = np.arange(len(mass))
    block = _first_above(sums, wanted)
    wanted = wanted - np.where(block > 0, sums[every, block - 1], 0.0)
    inside = mass.reshape(len(mass), -1, BLOCK)[every, block]
    within = np.cumsum(inside, axis=1, dtype=np.float64)
    token = _first_above(within, wanted)
    wanted = wanted - np.where(token > 0, within[every, token - 1], 0.0)
    return block * BLOCK + token, wanted


def _first_above(cumulative: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]) -> Indices:
    """The first column above a row's wanted value, [n]; if none is, the last one with a mass."""
    within = np.minimum(wanted, np.nextafter(cumulative[:, -1], 0.0))  # rounding can reach the sum
    columns: Indices = (cumulative > within[:, None]).argmax(1)
    return columns


def _candidates(mass: Floats, sampling: Sampling) -> Indices:
    """Ids that top_k and top_p leave, most probable first. mass: float32 [n]."""
    size = len(mass)
    limit = min(sampling.top_k or size, size)
    if sampling.top_p >= 1:
        return best(mass, limit)
    kept = best(mass, limit if sampling.top_k else min(limit, _LIKELY))
    # top_p is a share of what top_k leaves
    total = mass[kept] if sampling.top_k else mass
    wanted = sampling.top_p * float(total.sum(dtype=np.float64))
    if mass[kept].sum(dtype=np.float64) < wanted:
        kept = best(mass, size)
    cumulative = np.cumsum(mass[kept], dtype=np.float64)
    return kept[: int(np.searchsorted(cumulative, wanted)) + 1]


def best(values: Floats, count: int) -> Indices:
    """The ids of the `count` largest, best first, equal ones by rising id."""
    count = min(count, len(values))
    blocks = len(values) // BLOCK
    if count <= blocks:
        # only values that reach the count-th largest block maximum are sorted, which are few
        candidates = values[: blocks * BLOCK].reshape(blocks, BLOCK).max(1)
    else:
        candidates = values
    least = np.partition(candidates, -count)[-count]
    chosen = np.flatnonzero(values >= least)
    return chosen[np.lexsort((chosen, -values[chosen]))][:count]
