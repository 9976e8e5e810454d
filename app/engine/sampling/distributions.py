"""Next-token distributions of a batch; some rows have only the head of the adaptive softmax."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from model.core.config import Tail
from model.core.flat_batch import NO_ROWS
from model.core.graph import Floats, Indices


class NextDistributions:
    """Log-probabilities of next tokens for M rows.

    head: float32 [M, V], or, of an adaptive softmax, [M, columns]: its common tokens, then an entry
    for each of its `tails`. tail_rows: int64 [m], rows whose tails were computed, some perhaps
    twice. tail_logprobs: float32 [m, V - common tokens], the tokens of all tails by rising id.
    """

    __slots__ = ("_row_in_tails", "common", "head", "tail_logprobs", "tail_rows", "tails")

    def __init__(
        self,
        head: Floats,
        tails: tuple[Tail, ...] = (),
        tail_rows: Indices = NO_ROWS,
        tail_logprobs: Floats | None = None,
    ) -> None:
        self.head, self.tails = head, tails
        self.tail_rows, self.tail_logprobs = tail_rows, tail_logprobs
        self.common = tails[0].low if tails else head.shape[1]
        self._row_in_tails = {row: number for number, row in enumerate(tail_rows.tolist())}

    @property
    def invalid(self) -> frozenset[int]:
        """Rows with values that are not finite.

        One logit that is not makes its softmax so: looking at one entry of each is enough.
        """
        rows = np.flatnonzero(~np.isfinite(self.head[:, 0])).tolist()
        if self.tail_logprobs is not None and len(self.tail_logprobs):
            firsts = [tail.low - self.common for tail in self.tails]
            valid = np.isfinite(self.tail_logprobs[:, firsts].sum(1))
            rows += [row for row, number in self._row_in_tails.items() if not valid[number]]
        return frozenset(rows)

    def has_tails(self, row: int) -> bool:
        """Whether a row's tails were computed."""
        return row in self._row_in_tails

    def tail(self, row: int, number: int) -> Floats:
        """The tokens of a row's tail, float32 [size]. Raises KeyError if it was not computed."""
        assert self.tail_logprobs is not None
        low, high = self.tails[number].low, self.tails[number].high
        return self.tail_logprobs[self._row_in_tails[row], low - self.common : high - self.common]

    def logprob(self, row: int, token: int) -> float:
        """A token's log-probability. Raises KeyError if its tail was not computed."""
        if token < self.common:
            return float(self.head[row, token])
        assert self.tail_logprobs is not None
        return float(self.tail_logprobs[self._row_in_tails[row], token - self.common])

    def full(self, rows: Collection[int]) -> Floats:
        """Rows with all tokens, float32 [n, V]. Raises KeyError if tails were not computed."""
        heads = self.head[span(rows)]
        if self.tail_logprobs is None:
            return heads
        tails = self.tail_logprobs[span([self._row_in_tails[row] for row in rows])]
        return np.concatenate([heads[:, : self.common], tails], axis=1)


NO_DISTRIBUTIONS = NextDistributions(np.zeros((0, 1), np.float32))


def span(rows: Collection[int]) -> slice | list[int]:
    """The same rows as a slice if they are consecutive, so that nothing is copied."""
    first = next(iter(rows), 0)
    if all(row == first + index for index, row in enumerate(rows)):
        return slice(first, first + len(rows))
    return list(rows)
