"""Choosing the next token from its distribution. Pure; a row's choice depends on nothing else."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.graph import Floats, Indices

_LIKELY = 256
"""Candidates sorted first for top_p; they nearly always hold the wanted mass."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """temperature 0 takes the most probable token; top_k 0 and top_p 1 leave nothing out.

    `seed` and `choice` key the random numbers, so that a stream's text depends on them alone.
    """

    temperature: float
    top_k: int
    top_p: float
    seed: int
    choice: int
    banned: tuple[int, ...] = ()
    """Tokens that are never chosen."""


def uniform(seed: int, choice: int, position: int) -> float:
    """A number in [0, 1) from a counter-based generator: the same key, the same number."""
    key = struct.pack("<QQQ", seed % 2**64, choice, position)
    return (int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) >> 11) / 2.0**53


def sample(logprobs: Floats, sampling: Sampling, position: int) -> int:
    """The token chosen at a position of a stream from float32 [V] log-probabilities."""
    if sampling.banned:
        logprobs = logprobs.copy()
        logprobs[list(sampling.banned)] = -np.inf
    if sampling.temperature == 0:
        return int(logprobs.argmax())
    candidates = _candidates(logprobs, sampling)
    chosen = logprobs if candidates is None else logprobs[candidates]
    cumulative = np.cumsum(_mass(chosen, sampling.temperature))
    draw = uniform(sampling.seed, sampling.choice, position) * cumulative[-1]
    last = int(np.searchsorted(cumulative, cumulative[-1]))  # the last that has any mass
    index = min(int(np.searchsorted(cumulative, draw, side="right")), last)
    return index if candidates is None else int(candidates[index])


def _candidates(logprobs: Floats, sampling: Sampling) -> Indices | None:
    """Ids that top_k and top_p leave, most probable first; None for all of them."""
    size = len(logprobs)
    limit = min(sampling.top_k or size, size)
    if sampling.top_p >= 1:
        return None if limit == size else best(logprobs, limit)
    mass = _mass(logprobs, sampling.temperature)
    kept = best(logprobs, limit if sampling.top_k else min(limit, _LIKELY))
    # top_p is a share of what top_k leaves
    wanted = sampling.top_p * float(mass[kept].sum() if sampling.top_k else mass.sum())
    if mass[kept].sum() < wanted:
        kept = best(logprobs, size)
    return kept[: int(np.searchsorted(np.cumsum(mass[kept]), wanted)) + 1]


def _mass(logprobs: Floats, temperature: float) -> npt.NDArray[np.float64]:
    """Probabilities at a temperature but for a factor, the largest 1."""
    below = logprobs.astype(np.float64) - float(logprobs.max())
    with np.errstate(over="ignore"):  # at the lowest temperatures all but the largest are 0
        return np.exp(below / temperature)


def best(logprobs: Floats, count: int) -> Indices:
    """The `count` most probable ids, best first, equal ones by rising id."""
    count = min(count, len(logprobs))
    least = np.partition(logprobs, -count)[-count]
    chosen = np.flatnonzero(logprobs >= least)
    return chosen[np.lexsort((chosen, -logprobs[chosen]))][:count]
