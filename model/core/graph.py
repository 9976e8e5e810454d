"""The flat graph's interface: what goes in, what comes out, and how rows are addressed.

Legend: T rows, K taps (the widest kernel of a dilation; of 1 at least the widest n-gram), S states
read, W states written, N rows scored, L rows listed with k tokens each, M rows whose next-token
distribution is wanted, V vocabulary, P slots of the state pool. An adaptive softmax's head is its
common tokens and an entry for each tail.

In each layer an index addresses

    H = concat(zero row, T frames of this layer, states of age 1 of all S, of age 2 of all S, ...)

Layers of one dilation d share their addresses. `taps[t, j]` is where the frame of the token j * d
places before row t's token is found; a layer of width k reads k columns. To these layers a text is
d texts, each of every d-th token: a state is one for each phase, the position modulo d of the
tokens whose frames it holds, k - 1 of them, and a token touches that of its own phase alone. The
phase p of slot s is in row s * d + p of a pool; slots of `Addresses` are such rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt

from model.core.config import ModelConfig, Taps

Precision = Literal["float32", "float16", "int8"]
"""What products are computed in: float32, float16, or bytes with integer sums."""
StateType = Literal["float32", "float16", "uint8"]
"""What frames are kept in."""

STATE_TYPES: dict[Precision, StateType] = {
    "float32": "float32",
    "float16": "float16",
    "int8": "uint8",
}

ROW_MULTIPLES: dict[Precision, int] = {"float32": 1, "float16": 1, "int8": 4}
"""What the rows of products are filled up to a multiple of: in 8 bits other numbers of rows give
other bits on some processors."""

Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

TOKENS, TAPS = "tokens", "taps"
READ_SLOTS, WRITE_SLOTS, CARRY = "read_slots", "write_slots", "carry"
SCORE_ROWS, TARGETS, NEXT_ROWS = "score_rows", "targets", "next_rows"
LOGPROBS, NEXT_LOGPROBS = "logprobs", "next_logprobs"
LIST_ROWS, LIST_TARGETS, LIST_COUNT = "list_rows", "list_targets", "list_count"
LISTED_LOGPROBS, LISTED_RANKS = "listed_logprobs", "listed_ranks"
LISTED_IDS, LISTED_TOP = "listed_ids", "listed_top"
LISTED = (LISTED_LOGPROBS, LISTED_RANKS, LISTED_IDS, LISTED_TOP)
LISTED_ROWS = 16
"""Rows whose distributions are made at a time: a megabyte with 16,384 tokens."""
TAIL_WEIGHTS, TAIL_FLOORS = "tail_weights", "tail_floors"
NEXT_PLACES, NEXT_TAILS = "next_places", "next_tails"
HELD_TOKENS = 2
"""Tokens 0 and 1, a tokenizer's start and end symbol, which a stream may be held from choosing."""

ZERO_ROW = 0
"""What lies before a text: zero frames at every layer (Dauphin 2017, section 2)."""
SCRATCH_SLOT = 0
"""A slot that belongs to no stream: dummy entries of the slot lists name it."""


TOKEN_POOL = "pool_tokens"
"""The pool of the last tokens themselves, as float32, which holds ids below 2^24 exactly."""


def pool_name(layer: int) -> str:
    """The input that holds a layer's states: float32 [P * d, k - 1, C]."""
    return f"pool_{layer}"


def named(name: str, dilation: int) -> str:
    """What the `taps`, slots or `carry` of a dilation's layers are called, and their lengths."""
    return name if dilation == 1 else f"{name}_{dilation}"


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


@dataclass(frozen=True, slots=True)
class Pool:
    """A state pool: dtype [P * dilation, ages, channels]."""

    dilation: int
    ages: int
    channels: int
    dtype: StateType


def pools(config: ModelConfig, precision: Precision) -> dict[str, Pool]:
    """The state pools by input name.

    One for each layer wider than one token, and one for the tokens where n-grams need them.
    """
    found = {
        pool_name(i): Pool(layer.dilation, layer.kernel - 1, layer.inputs, STATE_TYPES[precision])
        for i, layer in enumerate(config.layers())
        if layer.span
    }
    tokens = Pool(1, config.ngram_order - 1, 1, "float32")
    return found | ({TOKEN_POOL: tokens} if config.ngrams else {})


Place = TypeVar("Place", int, Indices)


def frame_row(row: Place) -> Place:
    """Address of a batch row's frame, or of many."""
    return 1 + row


def state_row(rows: int, states: int | Place, state: Place, age: Place) -> Place:
    """Address of a state's frame of an age (1 = the newest) in a batch of `rows` rows, or of
    many, by the rules of NumPy's broadcasting."""
    return 1 + rows + (age - 1) * states + state


@dataclass(frozen=True, slots=True)
class TailTerms:
    """Which rows of a list an adaptive softmax computes its tails for: those where

        weights @ (probability of the likeliest token of the head that is not held, those of the
        held tokens, those of the tails) >= floor

    so that a draw which falls into the head needs no tail. weights: float32 [M, 1 + HELD_TOKENS +
    tails]. floors: float32 [M].
    """

    weights: Floats
    floors: Floats

    @classmethod
    def always(cls, rows: int, tails: int) -> Self:
        """The terms of rows whose tails are wanted whatever the head says."""
        weights = np.zeros((rows, 1 + HELD_TOKENS + tails), np.float32)
        return cls(weights, np.full(rows, ALWAYS, np.float32))

    @classmethod
    @lru_cache(maxsize=16)
    def none(cls, tails: int) -> Self:
        """The terms of no rows, the same arrays every time."""
        return cls.always(0, tails)

    def filled(self, rows: int) -> Self:
        """The same with rows behind them, up to `rows`, whose tails are not wanted."""
        dummies = rows - len(self.floors)
        if not dummies:
            return self
        weights = np.zeros((rows, self.weights.shape[1]), np.float32)
        weights[: len(self.weights)] = self.weights
        floors = np.full(rows, NEVER, np.float32)
        floors[: len(self.floors)] = self.floors
        return type(self)(weights, floors)


ALWAYS, NEVER = -1.0, 1.0
"""Floors beside weights of 0."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the layers of a dilation find frames, and where they leave states.

    taps: int64 [T, K]. read_slots: int64 [S], rows of the pool whose states the taps address.
    write_slots: int64 [W], distinct but for SCRATCH_SLOT; carry: int64 [W, K - 1], where the frames
    of ages 1, 2, ... of the state to write are found. The lists of slots have at least one entry,
    a dummy if need be. Nobody writes to the arrays, which several may share.
    """

    dilation: int
    taps: Indices
    read_slots: Indices
    write_slots: Indices
    carry: Indices

    def feeds(self) -> dict[str, Indices]:
        """The arrays by input name."""
        arrays = {TAPS: self.taps, CARRY: self.carry} | self._slots()
        return {named(name, self.dilation): array for name, array in arrays.items()}

    def moving(self) -> dict[str, Indices]:
        """Those that differ in the next step of the same streams, by input name."""
        if self.dilation == 1:
            return {}
        return {named(name, self.dilation): array for name, array in self._slots().items()}

    @property
    def fixed(self) -> tuple[Indices, ...]:
        """Those that do not."""
        return (self.taps, self.carry, *(self._slots().values() if self.dilation == 1 else ()))

    def _slots(self) -> dict[str, Indices]:
        return {READ_SLOTS: self.read_slots, WRITE_SLOTS: self.write_slots}


def shared(array: Indices) -> Indices:
    """An array that several batches have: nobody may write to it."""
    array.setflags(write=False)
    return array


NO_ROWS = shared(np.zeros(0, np.int64))


@dataclass(frozen=True, slots=True)
class FlatBatch:
    """One run of the flat graph. The lists of the softmax (score_rows, targets, next_rows, the
    tails', list_rows, list_targets) may be empty.

    tokens: int64 [T]. addresses: of each dilation, in the order of `ModelConfig.taps`. score_rows,
    targets: int64 [N]. next_rows: int64 [M]. tails: of which of these rows an adaptive softmax
    computes its tails; None for all. list_rows, list_targets: int64 [L], rows that are scored and
    have their `list_count` most probable tokens listed.
    """

    tokens: Indices
    addresses: tuple[Addresses, ...]
    score_rows: Indices
    targets: Indices
    next_rows: Indices
    tails: TailTerms | None = None
    list_rows: Indices = field(default_factory=lambda: NO_ROWS)
    list_targets: Indices = field(default_factory=lambda: NO_ROWS)
    list_count: int = 1

    @property
    def fixed(self) -> tuple[Indices, ...]:
        """The arrays that are the same for the next step of the same streams, without lists.

        `list_count` goes with `list_rows`: batches that share these have the same.
        """
        own = (array for addresses in self.addresses for array in addresses.fixed)
        lists = self.score_rows, self.targets, self.next_rows, self.list_rows, self.list_targets
        return (*own, *lists)

    def moving(self) -> dict[str, Indices]:
        """The others but for the tails' terms, by input name."""
        arrays = {TOKENS: self.tokens}
        for addresses in self.addresses:
            arrays |= addresses.moving()
        return arrays

    def feeds(
        self, config: ModelConfig, multiple: int = 1, least: int = 0
    ) -> dict[str, Indices | Floats]:
        """The arrays by input name, for the graph of a model.

        multiple: the lists of an adaptive softmax's tails are filled up to a multiple of it. least:
        entries that every list but that of listed rows has, dummies if need be.
        """
        arrays: dict[str, Indices | Floats] = {
            TOKENS: self.tokens,
            SCORE_ROWS: filled(self.score_rows, 0, least=least),
            TARGETS: filled(self.targets, 0, least=least),
            NEXT_ROWS: filled(self.next_rows, 0, least=least),
            LIST_ROWS: filled(self.list_rows, 0, LISTED_ROWS),  # of none, the loop has no turn
            LIST_TARGETS: filled(self.list_targets, 0, LISTED_ROWS),
            LIST_COUNT: np.array([min(self.list_count, config.vocabulary)]),
        }
        for addresses in self.addresses:
            arrays |= addresses.feeds()
        if not config.cutoffs:
            return arrays
        return arrays | self._clusters(config, multiple, least) | self.terms(config, least)

    def terms(self, config: ModelConfig, least: int = 0) -> dict[str, Floats]:
        """The inputs that say for which of the rows the tails are computed."""
        rows = max(len(self.next_rows), least)
        wanted, count = len(self.next_rows), len(config.tails)
        tails = self.tails or (TailTerms.always(wanted, count) if wanted else TailTerms.none(count))
        tails = tails.filled(rows)
        if least:  # the tails' list has an entry too
            tails = TailTerms(tails.weights.copy(), tails.floors.copy())
            tails.weights[0], tails.floors[0] = 0, ALWAYS
        return {TAIL_WEIGHTS: tails.weights, TAIL_FLOORS: tails.floors}

    def _clusters(
        self, config: ModelConfig, multiple: int, least: int
    ) -> dict[str, Indices | Floats]:
        """Targets as columns of the head, and for each tail the rows whose target it holds."""
        columns = filled(self.targets.copy(), 0, least=least)
        arrays: dict[str, Indices | Floats] = {TARGETS: columns}
        for index, tail in enumerate(config.tails):
            places = np.flatnonzero((self.targets >= tail.low) & (self.targets < tail.high))
            columns[places] = config.cutoffs[0] + index
            rows, targets = self.score_rows[places], self.targets[places] - tail.low
            arrays[tail_rows_name(index)] = filled(rows, 0, multiple, least)
            arrays[tail_targets_name(index)] = filled(targets, 0, multiple, least)
            # dummies are for the place behind the last
            arrays[tail_places_name(index)] = filled(places, len(columns), multiple, least)
        return arrays


def filled(values: npt.ArrayLike, dummy: int, multiple: int = 1, least: int = 0) -> Indices:
    """A list with dummies behind it up to a multiple of a length, and at least to `least`."""
    array = np.asarray(values, np.int64)
    missing = -len(array) % multiple if len(array) >= least else multiple
    return np.concatenate([array, np.full(missing, dummy, np.int64)]) if missing else array


def whole_text(ids: npt.ArrayLike, taps: Taps, multiple: int = 1) -> FlatBatch:
    """The simplest batch: one text whole, every token but the first scored, nothing carried.

    ids: [n], the start symbol first, n >= 2. The distribution after the last token is wanted too.
    taps: the model's. multiple: dummies fill the rows up to a multiple of it.
    """
    tokens = np.asarray(ids, np.int64)
    dummies = -len(tokens) % multiple

    def alone(dilation: int, columns: int) -> Addresses:
        rows = np.arange(len(tokens))[:, None] - dilation * np.arange(columns)
        table = np.where(rows >= 0, frame_row(rows), ZERO_ROW)
        table = np.pad(table, ((0, dummies), (0, 0)))
        none = np.array([SCRATCH_SLOT])
        return Addresses(dilation, table, none, none, np.full((1, columns - 1), ZERO_ROW, np.int64))

    return FlatBatch(
        tokens=filled(tokens, 0, multiple),
        addresses=tuple(alone(*each) for each in taps),
        score_rows=filled(np.arange(len(tokens) - 1), 0, multiple),
        targets=filled(tokens[1:], 0, multiple),
        next_rows=filled([len(tokens) - 1], 0, multiple),
    )


def empty_pools(
    config: ModelConfig, slots: int, precision: Precision
) -> dict[str, npt.NDArray[np.float32 | np.float16 | np.uint8]]:
    """States of no meaning, [slots * d, k - 1, C] a pool, by input name."""
    return {
        name: np.zeros((slots * pool.dilation, pool.ages, pool.channels), pool.dtype)
        for name, pool in pools(config, precision).items()
    }
