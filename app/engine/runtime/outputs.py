"""The outputs of one batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from app.engine.sampling.distributions import NextDistributions
from model.core.graph import Floats, Indices


@dataclass(frozen=True, slots=True)
class Alternatives:
    """Scores and alternatives of L rows, with any dummies at the end.

    logprobs: float32 [L], the targets'. ranks: int64 [L], 1 for a target that is most probable.
    ids, top: int64 and float32 [L, k], the most probable tokens and their log-probabilities, best
    first, equally probable ones by rising id.
    """

    logprobs: Floats
    ranks: Indices
    ids: Indices
    top: Floats

    @classmethod
    def none(cls) -> Self:
        """Those of no rows."""
        nothing = np.zeros((0, 1), np.float32)
        return cls(nothing[:, 0], np.zeros(0, np.int64), np.zeros((0, 1), np.int64), nothing)

    @classmethod
    def of(cls, logprobs: Floats, likelier: Floats, ids: Indices, top: Floats) -> Self:
        """From the graph's outputs, whose first two axes are the L rows in blocks.

        likelier: how many tokens are more probable than the target.
        """
        ranks = likelier.reshape(-1).astype(np.int64) + 1
        count = ids.shape[2]
        return cls(logprobs.reshape(-1), ranks, ids.reshape(-1, count), top.reshape(-1, count))


class Outputs(NamedTuple):
    """logprobs: float32 [N], the targets' of N scored rows. next_distributions: of M rows.
    alternatives: of L rows."""

    logprobs: Floats
    next_distributions: NextDistributions
    alternatives: Alternatives = Alternatives.none()
