"""Next-token distributions as a batch gives them: of some rows the head alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model.core.config import Tail
from model.core.graph import Floats, Indices

_NONE = np.zeros(0, np.int64)


class Following:
    """Log-probabilities of next tokens for M rows.

    head: float32 [M, V], or, of an adaptive softmax, [M, columns]: its common tokens, then an entry
    for each of its `clusters`. places: int64 [m], rows whose tails were computed, some perhaps
    twice. tails: float32 [m, V - common tokens], the tokens of all tails by rising id.
    """

    __slots__ = ("_found", "_tails", "clusters", "common", "head")

    def __init__(
        self,
        head: Floats,
        clusters: tuple[Tail, ...] = (),
        places: Indices = _NONE,
        tails: Floats | None = None,
    ) -> None:
        self.head, self.clusters, self._tails = head, clusters, tails
        self.common = clusters[0].low if clusters else head.shape[1]
        self._found = {place: number for number, place in enumerate(places.tolist())}

    @property
    def broken(self) -> frozenset[int]:
        """Rows with values that are not finite.

        One logit that is none makes all of its softmax so: an entry of each is looked at.
        """
        bad = np.flatnonzero(~np.isfinite(self.head[:, 0])).tolist()
        if self._tails is not None and len(self._tails):
            firsts = [cluster.low - self.common for cluster in self.clusters]
            sums = self._tails[:, firsts].sum(1)
            places = set(np.flatnonzero(~np.isfinite(sums)).tolist())
            bad += [row for row, place in self._found.items() if place in places]
        return frozenset(bad)

    def has_tails(self, row: int) -> bool:
        """Whether a row's tails were computed."""
        return row in self._found

    def tail(self, row: int, cluster: int) -> Floats:
        """The tokens of a row's tail, float32 [size]. Raises KeyError where it was left out."""
        assert self._tails is not None
        bounds = self.clusters[cluster]
        return self._tails[self._found[row], bounds.low - self.common : bounds.high - self.common]

    def logprob(self, row: int, token: int) -> float:
        """A token's. Raises KeyError where it was left out."""
        if token < self.common:
            return float(self.head[row, token])
        assert self._tails is not None
        return float(self._tails[self._found[row], token - self.common])

    def whole(self, rows: Sequence[int]) -> Floats:
        """Rows with all tokens, float32 [n, V]. Raises KeyError where tails were left out."""
        heads = self.head[span(rows)]
        if self._tails is None:
            return heads
        tails = self._tails[span([self._found[row] for row in rows])]
        return np.concatenate([heads[:, : self.common], tails], axis=1)


NOTHING_FOLLOWS = Following(np.zeros((0, 1), np.float32))
"""Of no rows."""


def span(rows: Sequence[int]) -> slice | list[int]:
    """The same rows as a slice if they lie side by side, so that nothing is copied."""
    first = rows[0] if rows else 0
    if all(row == first + place for place, row in enumerate(rows)):
        return slice(first, first + len(rows))
    return list(rows)
