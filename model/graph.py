"""The flat graph's interface: what goes in, what comes out, and how rows are addressed.

Legend: T rows, K taps (tokens that the widest layer spans), S states read, W states written, N rows scored,
M rows whose next-token distribution is wanted, V vocabulary, P slots of the state pool.

In each layer an index addresses

    H = concat(zero row, T frames of this layer, states of age 1 of all S, of age 2 of all S, ...)

`taps[t, j]` is where the frame of the token j places before row t's token is found. A layer of
width k and dilation d reads k columns, d apart, so one table serves every layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.config import ModelConfig

Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

TOKENS, TAPS = "tokens", "taps"
READ_SLOTS, WRITE_SLOTS, CARRY = "read_slots", "write_slots", "carry"
SCORE_ROWS, TARGETS, NEXT_ROWS = "score_rows", "targets", "next_rows"
LOGPROBS, NEXT_LOGPROBS = "logprobs", "next_logprobs"

ZERO_ROW = 0
"""What lies before a text: zero frames at every layer (Dauphin 2017, section 2)."""
SCRATCH_SLOT = 0
"""A slot that belongs to no stream: dummy entries of the slot lists name it."""


TOKEN_POOL = "pool_tokens"
"""The pool of the last tokens themselves, as float32, which holds ids below 2^24 exactly."""


def pool_name(layer: int) -> str:
    """The input that holds a layer's states: float32 [P, (k - 1) d, C]."""
    return f"pool_{layer}"


def new_pool_name(pool: str) -> str:
    """The output for the same tensor; bind both names to one value."""
    return f"new_{pool}"


def tail_rows_name(tail: int) -> str:
    """The input with the batch rows whose target is in a tail of an adaptive softmax: [n]."""
    return f"tail_{tail}_rows"


def tail_targets_name(tail: int) -> str:
    """The input with those targets, counted from the tail's first: [n]."""
    return f"tail_{tail}_targets"


def tail_places_name(tail: int) -> str:
    """The input with their places in `score_rows`; N, behind the last, for a dummy: [n]."""
    return f"tail_{tail}_places"


def pools(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Ages (k - 1) d and channels C of every pool, by input name.

    One for each layer wider than one token, and one for the tokens where n-grams need them.
    """
    found = {
        pool_name(i): (layer.span, layer.inputs)
        for i, layer in enumerate(config.layers())
        if layer.span
    }
    return found | ({TOKEN_POOL: (config.ngram_order - 1, 1)} if config.ngrams else {})


def frame_row(row: int) -> int:
    """Address of a batch row's frame."""
    return 1 + row


def state_row(rows: int, states: int, state: int, age: int) -> int:
    """Address of a state's frame of an age (1 = the newest) in a batch of `rows` rows."""
    return 1 + rows + (age - 1) * states + state


@dataclass(frozen=True, slots=True)
class FlatBatch:
    """One run of the flat graph. Every list has at least one entry (a dummy, if need be).

    tokens: int64 [T]. taps: int64 [T, K]. read_slots: int64 [S], pool slots whose states the taps
    address. write_slots: int64 [W], distinct but for SCRATCH_SLOT; carry: int64 [W, K - 1], where
    the frames of ages 1, 2, ... of the state to write are found. score_rows, targets: int64 [N].
    next_rows: int64 [M].
    """

    tokens: Indices
    taps: Indices
    read_slots: Indices
    write_slots: Indices
    carry: Indices
    score_rows: Indices
    targets: Indices
    next_rows: Indices

    def feeds(self, config: ModelConfig) -> dict[str, Indices]:
        """The arrays by input name, for the graph of a model."""
        arrays = {
            TOKENS: self.tokens,
            TAPS: self.taps,
            READ_SLOTS: self.read_slots,
            WRITE_SLOTS: self.write_slots,
            CARRY: self.carry,
            SCORE_ROWS: self.score_rows,
            TARGETS: self.targets,
            NEXT_ROWS: self.next_rows,
        }
        return arrays | self._clusters(config) if config.cutoffs else arrays

    def _clusters(self, config: ModelConfig) -> dict[str, Indices]:
        """Targets as columns of the head, and for each tail the rows whose target it holds."""
        columns = self.targets.copy()
        arrays = {TARGETS: columns}
        for index, tail in enumerate(config.tails):
            places = np.flatnonzero((self.targets >= tail.low) & (self.targets < tail.high))
            columns[places] = config.cutoffs[0] + index
            rows, targets = self.score_rows[places], self.targets[places] - tail.low
            if not len(places):  # a dummy, for the place behind the last
                rows, targets, places = (np.array([n]) for n in (0, 0, len(columns)))
            names = (tail_rows_name(index), tail_targets_name(index), tail_places_name(index))
            arrays |= dict(zip(names, (rows, targets, places), strict=True))
        return arrays


def whole_text(ids: npt.ArrayLike, taps: int) -> FlatBatch:
    """The simplest batch: one text whole, every token but the first scored, nothing carried.

    ids: [n], the start symbol first, n >= 2. The distribution after the last token is wanted too.
    """
    tokens = np.asarray(ids, np.int64)
    rows = np.arange(len(tokens))[:, None] - np.arange(taps)
    return FlatBatch(
        tokens=tokens,
        taps=np.where(rows >= 0, 1 + rows, ZERO_ROW).astype(np.int64),
        read_slots=np.array([SCRATCH_SLOT]),
        write_slots=np.array([SCRATCH_SLOT]),
        carry=np.full((1, taps - 1), ZERO_ROW, np.int64),
        score_rows=np.arange(len(tokens) - 1),
        targets=tokens[1:],
        next_rows=np.array([len(tokens) - 1]),
    )


def empty_pools(config: ModelConfig, slots: int) -> dict[str, Floats]:
    """Zero states, float32 [slots, (k - 1) d, C] a pool, by input name."""
    return {name: np.zeros((slots, *shape), np.float32) for name, shape in pools(config).items()}
