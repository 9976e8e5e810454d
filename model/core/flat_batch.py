"""A batch of the flat graph as arrays: its rows, their addresses, and what the softmax computes.

Legend: see `model.core.graph`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Self

import numpy as np
import numpy.typing as npt

from model.core import graph
from model.core.config import ModelConfig, Taps
from model.core.graph import Floats, Indices


@dataclass(frozen=True, slots=True)
class TailTerms:
    """Says for which of a batch's next-token rows an adaptive softmax computes its tails.

    It does so for a row where

        weights @ (probability of the likeliest head token that is not held, probabilities of the
        held tokens, probabilities of the tails) >= floor

    so that a draw which falls into the head needs no tail. weights: float32 [M, 1 + HELD_TOKENS +
    tails]. floors: float32 [M].
    """

    weights: Floats
    floors: Floats

    @classmethod
    def always(cls, rows: int, tails: int) -> Self:
        """Terms under which the tails of all rows are computed."""
        weights = np.zeros((rows, 1 + graph.HELD_TOKENS + tails), np.float32)
        return cls(weights, np.full(rows, ALWAYS, np.float32))

    @classmethod
    @lru_cache(maxsize=16)
    def none(cls, tails: int) -> Self:
        """Terms of no rows; the arrays are the same in every call."""
        return cls.always(0, tails)

    def padded(self, rows: int) -> Self:
        """These terms with dummies appended, up to `rows`; no tails are computed for a dummy."""
        dummies = rows - len(self.floors)
        if not dummies:
            return self
        weights = np.zeros((rows, self.weights.shape[1]), np.float32)
        weights[: len(self.weights)] = self.weights
        floors = np.full(rows, NEVER, np.float32)
        floors[: len(self.floors)] = self.floors
        return type(self)(weights, floors)


ALWAYS, NEVER = -1.0, 1.0
"""Floors that decide alone where the weights are 0."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Addresses of the frames that the layers of a dilation read, and of the states they write.

    taps: int64 [T, K]. read_slots: int64 [S], rows of the pool whose states the taps address.
    write_slots: int64 [W], distinct but for SCRATCH_SLOT; carry: int64 [W, K - 1], the
    addresses of the frames of ages 1, 2, ... of the state to write. The lists of slots have at
    least one entry, a dummy if need be. The arrays are never written to: batches may share them.
    """

    dilation: int
    taps: Indices
    read_slots: Indices
    write_slots: Indices
    carry: Indices

    def feeds(self) -> dict[str, Indices]:
        """The arrays by input name."""
        return self._named({graph.TAPS: self.taps, graph.CARRY: self.carry} | self._slots())

    def moving(self) -> dict[str, Indices]:
        """The arrays that differ in the next step of the same streams, by input name."""
        return {} if self.dilation == 1 else self._named(self._slots())

    @property
    def fixed(self) -> tuple[Indices, ...]:
        """The arrays that do not differ."""
        return (self.taps, self.carry, *(self._slots().values() if self.dilation == 1 else ()))

    def _named(self, arrays: dict[str, Indices]) -> dict[str, Indices]:
        return {graph.dilated_name(name, self.dilation): array for name, array in arrays.items()}

    def _slots(self) -> dict[str, Indices]:
        return {graph.READ_SLOTS: self.read_slots, graph.WRITE_SLOTS: self.write_slots}


def read_only(array: Indices) -> Indices:
    """Makes an array read-only, so that batches can share it; returns it."""
    array.setflags(write=False)
    return array


NO_ROWS = read_only(np.zeros(0, np.int64))


@dataclass(frozen=True, slots=True)
class FlatBatch:
    """The arrays of one run of the flat graph. The lists for the softmax (score_rows, targets,
    next_rows, the tails', alternative_rows, alternative_targets) may be empty.

    tokens: int64 [T]. addresses: of each dilation, in the order of `ModelConfig.taps`. score_rows,
    targets: int64 [N]. next_rows: int64 [M]. tails: for which of these rows an adaptive softmax
    computes its tails; None for all. alternative_rows, alternative_targets: int64 [L], rows that
    are scored and get their `alternative_count` most probable tokens.
    """

    tokens: Indices
    addresses: tuple[Addresses, ...]
    score_rows: Indices
    targets: Indices
    next_rows: Indices
    tails: TailTerms | None = None
    alternative_rows: Indices = field(default_factory=lambda: NO_ROWS)
    alternative_targets: Indices = field(default_factory=lambda: NO_ROWS)
    alternative_count: int = 1

    @property
    def fixed(self) -> tuple[Indices, ...]:
        """The arrays that do not differ in the next step of the same streams.

        `alternative_count` belongs to `alternative_rows`: batches that share these share both.
        """
        return (
            *(array for addresses in self.addresses for array in addresses.fixed),
            self.score_rows,
            self.targets,
            self.next_rows,
            self.alternative_rows,
            self.alternative_targets,
        )

    def moving(self) -> dict[str, Indices]:
        """The arrays that differ, without the terms of the tails, by input name."""
        arrays = {graph.TOKENS: self.tokens}
        for addresses in self.addresses:
            arrays |= addresses.moving()
        return arrays

    def feeds(
        self, config: ModelConfig, multiple: int = 1, least: int = 0
    ) -> dict[str, Indices | Floats]:
        """The arrays by input name, for the graph of a model.

        multiple: the lists for the tails of an adaptive softmax are padded to a multiple of it.
        least: every list except those of rows with alternatives is padded to this length.
        """
        turn = graph.ALTERNATIVE_ROWS_AT_ONCE  # without rows the loop has no turn
        arrays: dict[str, Indices | Floats] = {
            graph.TOKENS: self.tokens,
            graph.SCORE_ROWS: pad(self.score_rows, 0, least=least),
            graph.TARGETS: pad(self.targets, 0, least=least),
            graph.NEXT_ROWS: pad(self.next_rows, 0, least=least),
            graph.ALTERNATIVE_ROWS: pad(self.alternative_rows, 0, turn),
            graph.ALTERNATIVE_TARGETS: pad(self.alternative_targets, 0, turn),
            graph.ALTERNATIVE_COUNT: np.array([min(self.alternative_count, config.vocabulary)]),
        }
        for addresses in self.addresses:
            arrays |= addresses.feeds()
        if not config.cutoffs:
            return arrays
        return arrays | self._clusters(config, multiple, least) | self.terms(config, least)

    def terms(self, config: ModelConfig, least: int = 0) -> dict[str, Floats]:
        """The inputs that say for which rows the tails are computed."""
        rows = max(len(self.next_rows), least)
        wanted, count = len(self.next_rows), len(config.tails)
        tails = self.tails or (TailTerms.always(wanted, count) if wanted else TailTerms.none(count))
        tails = tails.padded(rows)
        if least:  # the list of rows with tails has an entry too
            tails = TailTerms(tails.weights.copy(), tails.floors.copy())
            tails.weights[0], tails.floors[0] = 0, ALWAYS
        return {graph.TAIL_WEIGHTS: tails.weights, graph.TAIL_FLOORS: tails.floors}

    def _clusters(
        self, config: ModelConfig, multiple: int, least: int
    ) -> dict[str, Indices | Floats]:
        """Targets as columns of the head, and for each tail the rows whose targets it holds."""
        columns = pad(self.targets.copy(), 0, least=least)
        arrays: dict[str, Indices | Floats] = {graph.TARGETS: columns}
        for index, tail in enumerate(config.tails):
            positions = np.flatnonzero((self.targets >= tail.low) & (self.targets < tail.high))
            columns[positions] = config.cutoffs[0] + index
            rows, targets = self.score_rows[positions], self.targets[positions] - tail.low
            arrays[graph.tail_rows_name(index)] = pad(rows, 0, multiple, least)
            arrays[graph.tail_targets_name(index)] = pad(targets, 0, multiple, least)
            # a dummy writes to the position after the last
            arrays[graph.tail_positions_name(index)] = pad(positions, len(columns), multiple, least)
        return arrays


def pad(values: npt.ArrayLike, dummy: int, multiple: int = 1, least: int = 0) -> Indices:
    """A list with dummies appended: its length is a multiple of `multiple` and at least `least`."""
    array = np.asarray(values, np.int64)
    missing = -len(array) % multiple if len(array) >= least else multiple
    return np.concatenate([array, np.full(missing, dummy, np.int64)]) if missing else array


def whole_text(ids: npt.ArrayLike, taps: Taps, multiple: int = 1) -> FlatBatch:
    """The simplest batch: one complete text, every token but the first scored, no states.

    ids: [n], the start symbol first, n >= 2. It includes the distribution after the last token.
    taps: the model's. multiple: rows are padded with dummies to a multiple of it.
    """
    tokens = np.asarray(ids, np.int64)
    dummies = -len(tokens) % multiple

    def addresses(dilation: int, columns: int) -> Addresses:
        rows = np.arange(len(tokens))[:, None] - dilation * np.arange(columns)
        table = np.where(rows >= 0, graph.frame_row(rows), graph.ZERO_ROW)
        table = np.pad(table, ((0, dummies), (0, 0)))
        none = np.array([graph.SCRATCH_SLOT])
        carry = np.full((1, columns - 1), graph.ZERO_ROW, np.int64)
        return Addresses(dilation, table, none, none, carry)

    return FlatBatch(
        tokens=pad(tokens, 0, multiple),
        addresses=tuple(addresses(*each) for each in taps),
        score_rows=pad(np.arange(len(tokens) - 1), 0, multiple),
        targets=pad(tokens[1:], 0, multiple),
        next_rows=pad([len(tokens) - 1], 0, multiple),
    )
