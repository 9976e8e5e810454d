"""Choosing next tokens from their distributions. Pure; a row's choice depends on nothing else."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from app.engine.sampling.logits_processors import Edits, edit
from model.core.graph import HELD_TOKENS, Floats, Indices

_LIKELY = 256
"""Candidates sorted first for top_p; they nearly always hold the wanted mass."""
BLOCK = 128
"""Tokens whose mass is added up before one of them is looked for."""
_PLAIN_TEMPERATURE = 0.25
"""A token of probability 1e-6 still has a mass of 1e-24."""
_ATTEMPTS = 8
"""Draws before the wanted tokens are sorted out; at top_p 0.9 one draw in 10^8 gets there."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """temperature 0 takes the most probable token; top_k 0, top_p 1 and min_p 0 leave nothing out.

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
    edits: Edits | None = None
    """Changes of the distribution before the temperature."""
    by_cluster: bool = field(init=False, repr=False, compare=False)
    """Whether tokens are drawn from the head of an adaptive softmax first (see `clusters`): the
    most probable one, or one of all at a temperature of at most 1."""

    def __post_init__(self) -> None:
        held = all(token < HELD_TOKENS for token in self.banned)
        wanted = self.whole if self.temperature else self.edits is None
        object.__setattr__(self, "by_cluster", held and wanted and self.temperature <= 1)

    @property
    def plain(self) -> bool:
        """Whether probabilities can be taken as they are, without a factor: none would vanish."""
        return self.temperature >= _PLAIN_TEMPERATURE and not self.min_p and self.edits is None

    @property
    def whole(self) -> bool:
        """Whether the first draw counts: nothing but the banned tokens is left out."""
        return self.plain and not self.top_k and self.top_p >= 1


@lru_cache(maxsize=4096)
def uniform(seed: int, choice: int, position: int, attempt: int = 0) -> float:
    """A number in [0, 1) from a counter-based generator: the same key, the same number.

    It is asked for before a batch and behind it.
    """
    key = struct.pack("<QQQQ", seed % 2**64, choice, position, attempt)
    return (int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) >> 11) / 2.0**53


def sample(
    logprobs: Floats, samplings: Sequence[Sampling], histories: Sequence[Sequence[int]]
) -> list[int]:
    """The tokens chosen for n streams, each behind the tokens that it has generated.

    logprobs: float32 [n, V]. top_k and top_p are kept by rejection: a token is drawn from all, and
    again if it is not among the wanted. That needs no sorting, and gives their distribution.
    """
    if len(samplings) == 1 and samplings[0].whole:
        token = _alone(logprobs[0], samplings[0], len(histories[0]))
        if token is not None:
            return [token]
    edited = [(row, s.edits) for row, s in enumerate(samplings) if s.edits is not None]
    if edited:
        logprobs = logprobs.copy()
        edit(logprobs, edited, histories, [sampling.banned for sampling in samplings])
    positions = [len(history) for history in histories]
    chosen = [0] * len(samplings)
    drawn = []
    for row, sampling in enumerate(samplings):
        if sampling.temperature == 0:
            chosen[row] = _most_probable(logprobs[row], sampling)
        else:
            drawn.append(row)
    if drawn:
        masses = _Masses(logprobs, drawn, samplings)
        for place, token in enumerate(masses.tokens(positions)):
            chosen[drawn[place]] = token
    return chosen


def _alone(row: Floats, sampling: Sampling, position: int) -> int | None:
    """What `_Masses` draws for one stream, in few steps: its caller waits for nothing else.

    None if the banned tokens had all that float32 holds.
    """
    mass = one_mass(row, sampling.temperature, sampling.banned)
    sums = one_block_sums(mass)
    total = float(sums[-1])
    if not total:
        return None
    share = uniform(sampling.seed, sampling.choice, position)
    return one_reached(mass, sums, share * total)[0]


def one_mass(row: Floats, temperature: float, banned: Sequence[int] = ()) -> Floats:
    """Log-probabilities, float32 [n], to masses at a temperature, but for a factor, and zeros up to
    whole blocks."""
    mass = np.empty(-(-len(row) // BLOCK) * BLOCK, np.float32)
    mass[len(row) :] = 0.0
    source = row if temperature == 1 else row / np.float32(temperature)
    np.exp(source, out=mass[: len(row)])
    for token in banned:
        mass[token] = 0.0
    return mass


def one_block_sums(mass: Floats) -> npt.NDArray[np.float64]:
    """`block_sums` of one row: float32 [blocks * BLOCK] to float64 [blocks]."""
    return np.cumsum(np.einsum("bt->b", mass.reshape(-1, BLOCK)), dtype=np.float64)


def one_reached(mass: Floats, sums: npt.NDArray[np.float64], wanted: float) -> tuple[int, float]:
    """`reached` for one row."""
    block = int(sums.searchsorted(min(wanted, math.nextafter(float(sums[-1]), 0.0)), "right"))
    wanted -= float(sums[block - 1]) if block else 0.0
    within = np.cumsum(mass[block * BLOCK : (block + 1) * BLOCK], dtype=np.float64)
    place = int(within.searchsorted(min(wanted, math.nextafter(float(within[-1]), 0.0)), "right"))
    return block * BLOCK + place, wanted - (float(within[place - 1]) if place else 0.0)


def _most_probable(row: Floats, sampling: Sampling) -> int:
    token = int(row.argmax())
    if token in sampling.banned:
        row = row.copy()
        row[list(sampling.banned)] = -np.inf
        token = int(row.argmax())
    return token


class _Masses:
    """Probabilities of some rows at their temperatures, but for a factor, and their sums.

    flat: float32 [n, V and zeros up to whole blocks]. sums: see `block_sums`.
    """

    def __init__(self, logprobs: Floats, rows: list[int], samplings: Sequence[Sampling]) -> None:
        size = logprobs.shape[1]
        blocks = -(-size // BLOCK)
        self.rows, self.samplings = rows, samplings
        self.flat = np.empty((len(rows), blocks * BLOCK), np.float32)
        self.flat[:, size:] = 0.0
        source = logprobs if len(rows) == len(logprobs) else logprobs[rows]
        own = [samplings[row] for row in rows]
        inner = self.flat[:, :size]
        if all(sampling.plain for sampling in own):
            _plain_mass(source, own, inner)
        else:
            for plain in (True, False):
                places = [p for p, sampling in enumerate(own) if sampling.plain == plain]
                mass = np.empty((len(places), size), np.float32)
                fill = _plain_mass if plain else _shifted_mass
                fill(source[places], [own[p] for p in places], mass)
                inner[places] = mass
        self.sums = block_sums(self.flat)
        # a banned token had all that float32 holds
        if not self.sums[:, -1].all():
            lost = np.flatnonzero(self.sums[:, -1] == 0).tolist()
            mass = np.empty((len(lost), size), np.float32)
            _shifted_mass(source[lost], [own[p] for p in lost], mass)
            inner[lost] = mass
            self.sums[lost] = block_sums(self.flat[lost])

    def tokens(self, positions: Sequence[int]) -> list[int]:
        """A token for every row; positions are those of all streams."""
        found = [0] * len(self.rows)
        left = list(range(len(self.rows)))
        for attempt in range(_ATTEMPTS):
            keys = [(self.samplings[self.rows[p]], positions[self.rows[p]]) for p in left]
            shares = [uniform(s.seed, s.choice, position, attempt) for s, position in keys]
            drawn = self._drawn(left, np.array(shares))
            rejected = []
            for place, token in zip(left, drawn, strict=True):
                found[place] = token
                if not self._wanted(place, token):
                    rejected.append(place)
            left = rejected
            if not left:
                return found
        for place in left:
            sampling, position = self.samplings[self.rows[place]], positions[self.rows[place]]
            share = uniform(sampling.seed, sampling.choice, position, _ATTEMPTS)
            found[place] = _from(_candidates(self.flat[place], sampling), self.flat[place], share)
        return found

    def _drawn(self, places: list[int], shares: npt.NDArray[np.float64]) -> list[int]:
        """By inversion: where a share of the mass is reached."""
        every = len(places) == len(self.sums)
        sums = self.sums if every else self.sums[places]
        mass = self.flat if every else self.flat[places]
        tokens: list[int] = reached(mass, sums, shares * sums[:, -1])[0].tolist()
        return tokens

    def _wanted(self, place: int, token: int) -> bool:
        """Whether top_k or top_p leave a token; equal ones come by rising id."""
        sampling = self.samplings[self.rows[place]]
        if not sampling.top_k and sampling.top_p >= 1:
            return True
        if sampling.top_k and sampling.top_p < 1:
            return False  # a share of what top_k leaves: that takes sorting
        mass = self.flat[place]
        above = mass > mass[token]
        equal = int(np.count_nonzero(mass[:token] == mass[token]))
        if sampling.top_k:
            return int(np.count_nonzero(above)) + equal < sampling.top_k
        before = float(mass[above].sum(dtype=np.float64)) + equal * float(mass[token])
        return before < sampling.top_p * float(self.sums[place, -1])


def _plain_mass(source: Floats, samplings: Sequence[Sampling], out: Floats) -> None:
    """Log-probabilities float32 [n, V] to masses in `out`, for samplings that are `plain`."""
    if any(sampling.temperature != 1 for sampling in samplings):
        heats = np.array([sampling.temperature for sampling in samplings], np.float32)
        source = source / heats[:, None]
    np.exp(source, out=out)
    if len({sampling.banned for sampling in samplings}) == 1:
        out[:, samplings[0].banned] = 0.0
        return
    for row, sampling in enumerate(samplings):
        out[row, list(sampling.banned)] = 0.0


def _shifted_mass(source: Floats, samplings: Sequence[Sampling], out: Floats) -> None:
    """The same for any temperature and any values, the largest mass of a row 1."""
    source = source.copy()
    for row, sampling in enumerate(samplings):
        source[row, list(sampling.banned)] = -np.inf
    np.subtract(source, source.max(1, keepdims=True), out=out)
    heats = np.array([sampling.temperature for sampling in samplings])
    with np.errstate(over="ignore"):  # at the lowest temperatures all but the largest are 0
        out /= np.maximum(heats, np.finfo(np.float32).tiny).astype(np.float32)[:, None]
    np.exp(out, out=out)
    for row, sampling in enumerate(samplings):
        out[row, list(sampling.banned)] = 0.0
    least = np.array([sampling.min_p for sampling in samplings], np.float32)
    out[out < least[:, None]] = 0.0


def block_sums(mass: Floats) -> npt.NDArray[np.float64]:
    """Running sums of the masses of blocks: float32 [n, blocks * BLOCK] to float64 [n, blocks]."""
    blocks = mass.reshape(len(mass), -1, BLOCK)
    # adds what lies side by side, as `sum` does, without its care for other layouts
    return np.cumsum(np.einsum("nbt->nb", blocks), axis=1, dtype=np.float64)


def reached(
    mass: Floats, sums: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]
) -> tuple[Indices, npt.NDArray[np.float64]]:
    """The tokens [n] in whose mass the wanted sums [n] are reached, and what is left of these.

    mass: float32 [n, blocks * BLOCK]. sums: its `block_sums`.
    """
    every = np.arange(len(mass))
    block = _first_above(sums, wanted)
    wanted = wanted - np.where(block > 0, sums[every, block - 1], 0.0)
    inside = mass.reshape(len(mass), -1, BLOCK)[every, block]
    within = np.cumsum(inside, axis=1, dtype=np.float64)
    place = _first_above(within, wanted)
    wanted = wanted - np.where(place > 0, within[every, place - 1], 0.0)
    return block * BLOCK + place, wanted


def _from(candidates: Indices, mass: Floats, share: float) -> int:
    cumulative = np.cumsum(mass[candidates], dtype=np.float64)
    index = _first_above(cumulative[None], np.array([share * cumulative[-1]]))
    return int(candidates[int(index[0])])


def _first_above(cumulative: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]) -> Indices:
    """The first column above a row's wanted value, [n]; the last that adds something if none is."""
    within = np.minimum(wanted, np.nextafter(cumulative[:, -1], 0.0))  # rounding can reach the sum
    found: Indices = (cumulative > within[:, None]).argmax(1)
    return found


def _candidates(mass: Floats, sampling: Sampling) -> Indices:
    """Ids that top_k and top_p leave, most probable first."""
    size = len(mass)
    limit = min(sampling.top_k or size, size)
    if sampling.top_p >= 1:
        return best(mass, limit)
    kept = best(mass, limit if sampling.top_k else min(limit, _LIKELY))
    # top_p is a share of what top_k leaves
    whole = mass[kept] if sampling.top_k else mass
    wanted = sampling.top_p * float(whole.sum(dtype=np.float64))
    if mass[kept].sum(dtype=np.float64) < wanted:
        kept = best(mass, size)
    cumulative = np.cumsum(mass[kept], dtype=np.float64)
    return kept[: int(np.searchsorted(cumulative, wanted)) + 1]


def best(values: Floats, count: int) -> Indices:
    """The ids of the `count` largest, best first, equal ones by rising id."""
    count = min(count, len(values))
    blocks = len(values) // BLOCK
    if count <= blocks:
        # that many blocks reach the count-th largest maximum, and few values besides: no sorting
        candidates = values[: blocks * BLOCK].reshape(blocks, BLOCK).max(1)
    else:
        candidates = values
    least = np.partition(candidates, -count)[-count]
    chosen = np.flatnonzero(values >= least)
    return chosen[np.lexsort((chosen, -values[chosen]))][:count]
