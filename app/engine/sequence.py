"""Work for the engine: one kind for texts, prompts and streams, which differ only in values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from app.engine.sampling.draw import Sampling, best
from model.core.graph import Floats, Indices

FinishReason = Literal["stop", "length"]
Alternatives = int | tuple[int, ...]
"""How many most probable tokens are listed for a row, or which tokens."""
MOST_LISTED = 1000
"""Alternatives that the graph lists; the sorting of more would take longer than the batch."""


@dataclass(frozen=True, slots=True)
class Generation:
    """How a sequence goes on by itself. `end_ids` stop it; `max_tokens` >= 1."""

    sampling: Sampling
    max_tokens: int
    end_ids: frozenset[int]
    top: Alternatives = 0
    """Alternatives reported for each generated token."""
    together: int = 1
    """Tokens that may be handed over at once, to a reader who has no use for the first of them."""


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens known, how many rows of them are computed, and what is wanted of the rows.

    tokens: int64 [n], the start symbol first. Row i holds token i and predicts token i + 1.
    score_from: rows from here on are scored against the token that follows; earlier rows are only
    history. top: alternatives for each scored row. follow: what is wanted of the last row: its
    `distribution`, a Generation, or nothing. parent: a sequence of the same request whose last row
    is the one before `score_from`, and whose state this one goes on from; None once it has.
    """

    tokens: Indices
    score_from: int = 0
    top: Alternatives = 0
    follow: Generation | Literal["distribution"] | None = None
    parent: Sequence | None = None
    children: int = field(init=False, default=0)
    """Sequences that have yet to go on from this one's state."""
    computed: int = field(init=False)
    generated: list[int] = field(init=False, default_factory=list)
    slot: int | None = field(init=False, default=None)
    closed: bool = field(init=False, default=False)
    running: bool = field(init=False, default=False)
    """Whether a batch under way holds a piece of it."""
    readers: int = field(init=False, default=0)
    """Pieces under way that read this one's state."""

    def __post_init__(self) -> None:
        self.computed = min(self.score_from, self.rows - 1)

    @property
    def rows(self) -> int:
        """Rows there are to compute: the last token is one only if something follows from it."""
        return len(self.tokens) + len(self.generated) - (self.follow is None)

    @property
    def work(self) -> int:
        """Rows that it takes at most, halos aside, from the beginning to the end."""
        generated = self.follow.max_tokens if isinstance(self.follow, Generation) else 0
        return len(self.tokens) - self.score_from + generated

    @property
    def best(self) -> int:
        """How many most probable tokens the graph lists for each scored row."""
        return self.top if isinstance(self.top, int) and self.top <= MOST_LISTED else 0

    @property
    def wide(self) -> bool:
        """Whether the whole distributions of scored rows are read instead: for named tokens, or for
        more than the graph lists."""
        return bool(self.top) and not self.best

    @property
    def streaming(self) -> bool:
        """Whether the one row it waits for is that of a token it has generated."""
        return bool(self.generated)

    def slice(self, start: int, stop: int) -> Indices:
        """The tokens of rows start to stop, given or generated, int64."""
        given = len(self.tokens)
        if stop <= given:
            return self.tokens[start:stop]
        own = self.generated[max(start - given, 0) : stop - given]
        return np.concatenate([self.tokens[start:given], np.array(own, np.int64)])


@dataclass(frozen=True, slots=True)
class Top:
    """Tokens listed for n rows, the most probable ones best first, or those that were named.

    ids: int64 [n, k]; logprobs: float32 [n, k].
    """

    ids: Indices
    logprobs: Floats


@dataclass(frozen=True, slots=True)
class Scored:
    """Log-probabilities of the tokens behind consecutive rows, float32 [n], in order.

    ranks: int64 [n], 1 for the most probable; known where `top` is.
    """

    logprobs: Floats
    top: Top | None
    ranks: Indices | None = None


@dataclass(frozen=True, slots=True)
class Distribution:
    """Log-probabilities of every token after the last, float32 [V]."""

    logprobs: Floats


@dataclass(slots=True)
class Generated:
    """One more token, its log-probability under the model alone, and why it is the last, if so."""

    token: int
    logprob: float
    top: Top | None
    finish: FinishReason | None


@dataclass(frozen=True, slots=True)
class Failed:
    """The engine could not run the sequence; `stopped` if it runs nothing any more."""

    message: str
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """Everything that was wanted has been delivered."""


Event = Scored | Distribution | Generated | Failed | Finished


def top_of(logprobs: npt.NDArray[np.float32], wanted: Alternatives) -> Top:
    """The tokens wanted of each row of float32 [n, V]; equally probable ones by rising id."""
    if isinstance(wanted, tuple):
        ids = np.tile(np.array(wanted, np.int64), (len(logprobs), 1))
    else:
        ids = np.stack([best(row, wanted) for row in logprobs])
    return Top(ids, np.take_along_axis(logprobs, ids, 1))


def ranks_of(logprobs: Floats, own: Floats) -> Indices:
    """How many tokens of each row are more probable than its own, plus 1. int64 [n].

    logprobs: float32 [n, V]. own: float32 [n], an entry of each row. Equal ones share a rank.
    """
    return np.asarray(np.count_nonzero(logprobs > own[:, None], axis=1) + 1, np.int64)
