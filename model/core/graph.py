"""The flat graph's interface: its inputs, its outputs, its state pools, and addresses of rows.

Legend: T rows, K taps (the widest kernel of a dilation; of 1 at least the widest n-gram), S states
read, W states written, N rows scored, L rows with k alternatives each, M rows whose next-token
distribution is computed, V vocabulary, P slots of the state pool. The head of an adaptive softmax
has its common tokens and an entry for each tail.

In each layer an index addresses

    H = concat(zero row, T frames of this layer, states of age 1 of all S, of age 2 of all S, ...)

Layers of one dilation d share their addresses. `taps[t, j]` is the address of the frame of the
token j * d before row t's token; a layer of width k reads k columns. To these layers a text is d
texts, each of every d-th token. So there is a state for each phase, the position modulo d of the
tokens whose frames it holds, k - 1 of them, and a token changes only the state of its phase. The
phase p of slot s is in row s * d + p of a pool; slots of `Addresses` are such rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from model.core.config import ModelConfig

Precision = Literal["float32", "float16", "int8"]
"""Numbers that products are computed in: float32, float16, or bytes with integer sums."""
StateType = Literal["float32", "float16", "uint8"]
"""Numbers that frames are kept in."""

STATE_TYPES: dict[Precision, StateType] = {
    "float32": "float32",
    "float16": "float16",
    "int8": "uint8",
}

ROW_MULTIPLES: dict[Precision, int] = {"float32": 1, "float16": 1, "int8": 4}
"""The rows of products are padded to a multiple of this: in 8 bits other numbers of rows give other
bits on some processors."""

Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

TOKENS, TAPS = "tokens", "taps"
READ_SLOTS, WRITE_SLOTS, CARRY = "read_slots", "write_slots", "carry"
SCORE_ROWS, TARGETS, NEXT_ROWS = "score_rows", "targets", "next_rows"
LOGPROBS, NEXT_LOGPROBS = "logprobs", "next_logprobs"
ALTERNATIVE_ROWS, ALTERNATIVE_TARGETS, ALTERNATIVE_COUNT = "list_rows", "list_targets", "list_count"
ALTERNATIVE_LOGPROBS = "listed_top"
ALTERNATIVE_OUTPUTS = ("listed_logprobs", "listed_ranks", "listed_ids", ALTERNATIVE_LOGPROBS)
"""The targets' log-probabilities and ranks; ids and log-probabilities of the alternatives."""
ALTERNATIVE_ROWS_AT_ONCE = 16
"""Rows whose distributions are computed at a time: a megabyte with 16,384 tokens."""
TAIL_WEIGHTS, TAIL_FLOORS = "tail_weights", "tail_floors"
NEXT_TAIL_ROWS, NEXT_TAILS = "next_places", "next_tails"
HELD_TOKENS = 2
"""Tokens 0 and 1, a tokenizer's start and end symbol, which a request can forbid."""

ZERO_ROW = 0
"""The address of the frames before a text, zeros at every layer (Dauphin 2017, section 2)."""
SCRATCH_SLOT = 0
"""A slot that belongs to no stream; the dummies in lists of slots are this one."""

TOKEN_POOL = "pool_tokens"
"""The pool of the last tokens themselves, as float32, which holds ids below 2^24 exactly."""
pool_name = "pool_{}".format
"""The input that holds a layer's states: float32 [P * d, k - 1, C]."""
new_pool_name = "new_{}".format
"""The output with the new state of an input; bind both names to one value."""
tail_rows_name = "tail_{}_rows".format
"""The input with the rows whose target is in a tail of an adaptive softmax: [n]."""
tail_targets_name = "tail_{}_targets".format
"""The input with those targets, counted from the tail's first: [n]."""
tail_positions_name = "tail_{}_places".format
"""The input with the positions of these rows in `score_rows`, N for a dummy: [n]."""


def dilated_name(name: str, dilation: int) -> str:
    """The name of a dilation's `taps`, slots or `carry`, or of their lengths."""
    return name if dilation == 1 else f"{name}_{dilation}"


@dataclass(frozen=True, slots=True)
class Pool:
    """A state pool: dtype [P * dilation, ages, channels]."""

    dilation: int
    ages: int
    channels: int
    dtype: StateType


def pools(config: ModelConfig, precision: Precision) -> dict[str, Pool]:
    """The state pools by input name: of each layer wider than one token, and of the tokens if there
    are n-grams."""
    layers = {
        pool_name(i): Pool(layer.dilation, layer.kernel - 1, layer.inputs, STATE_TYPES[precision])
        for i, layer in enumerate(config.layers())
        if layer.span
    }
    tokens = Pool(1, config.ngram_order - 1, 1, "float32")
    return layers | ({TOKEN_POOL: tokens} if config.ngrams else {})


Number = TypeVar("Number", int, Indices)


def frame_row(row: Number) -> Number:
    """The address of a row's frame, or of many."""
    return 1 + row


def state_row(rows: int, states: int | Number, state: Number, age: Number) -> Number:
    """The address of a state's frame of an age (1 = the newest) in a batch of `rows` rows, or of
    many, by NumPy's broadcasting."""
    return 1 + rows + (age - 1) * states + state


def empty_pools(
    config: ModelConfig, slots: int, precision: Precision
) -> dict[str, npt.NDArray[np.float32 | np.float16 | np.uint8]]:
    """State pools of zeros, [slots * d, k - 1, C] each, by input name."""
    return {
        name: np.zeros((slots * pool.dilation, pool.ages, pool.channels), pool.dtype)
        for name, pool in pools(config, precision).items()
    }
