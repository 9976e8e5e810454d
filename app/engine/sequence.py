"""Work for the engine: one class for texts, prompts and streams, which differ only in values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from app.engine.policy import POLICY
from app.engine.sampling.draw import Sampling, best
from model.core.graph import Floats, Indices

if TYPE_CHECKING:
    from app.engine.turns import CallerQueue

FinishReason = Literal["stop", "length"]
TopWanted = int | tuple[int, ...]
"""Alternatives wanted for a row: how many of the most probable tokens, or which tokens."""
MAX_GRAPH_ALTERNATIVES = 1000
"""Alternatives that the graph finds itself; sorting more would take longer than the batch."""


@dataclass(frozen=True, slots=True)
class Generation:
    """How a sequence is continued. `end_ids` end it; `max_tokens` >= 1."""

    sampling: Sampling
    max_tokens: int
    end_ids: frozenset[int]
    top: TopWanted = 0
    """Alternatives reported for each generated token."""
    together: int = 1
    """Tokens that may be delivered at once, to a reader who has no use for the first alone."""


@dataclass(slots=True, eq=False)
class Sequence:
    """Known tokens, how many of their rows are computed, and what is wanted of the rows.

    tokens: int64 [n], the start symbol first. Row i holds token i and predicts token i + 1.
    score_from: rows from here on are scored against the next token; earlier rows are only
    history. top: alternatives for each scored row. follow: what is wanted of the last row: its
    `distribution`, a Generation, or nothing. parent: a sequence of the same caller whose last row
    is the one before `score_from`, and from whose state this one starts; None once it has started.
    """

    tokens: Indices
    score_from: int = 0
    top: TopWanted = 0
    follow: Generation | Literal["distribution"] | None = None
    parent: Sequence | None = None
    children: int = field(init=False, default=0)
    """Sequences that have yet to start from this one's state."""
    computed: int = field(init=False)
    generated: list[int] = field(init=False, default_factory=list)
    slot: int | None = field(init=False, default=None)
    closed: bool = field(init=False, default=False)
    running: bool = field(init=False, default=False)
    """Whether a running batch holds a piece of it, or it waits to be run again."""
    state_lost: bool = field(init=False, default=False)
    """Whether a batch that failed may have written to its slot, whose state is not to be read."""
    readers: int = field(init=False, default=0)
    """Pieces of running batches that read this one's state."""
    caller: CallerQueue | None = field(init=False, default=None)
    """Whose it is, once the scheduler has it."""
    tokens_read: int = field(init=False, default=0)
    """Generated tokens that have been read. Set by the reader's thread alone."""

    def __post_init__(self) -> None:
        self.computed = self.first_row

    @property
    def first_row(self) -> int:
        """The first row to compute, halos aside."""
        return min(self.score_from, len(self.tokens) - (self.follow is None) - 1)

    @property
    def rows(self) -> int:
        """Rows to compute: the last token has a row only if its next token is wanted."""
        return len(self.tokens) + len(self.generated) - (self.follow is None)

    @property
    def rows_left(self) -> int:
        """Rows not computed yet."""
        return self.rows - self.computed

    @property
    def work(self) -> int:
        """Rows that it takes at most from beginning to end, halos aside."""
        generated = self.follow.max_tokens if isinstance(self.follow, Generation) else 0
        return len(self.tokens) - self.score_from + generated

    def rows_due(self, longest: int) -> int:
        """Rows left of the text or prompt, and of the halo before the first, of up to `longest`.

        What it may generate is not counted: nobody knows how much of it will be read.
        """
        return self.rows_left + (0 if self.parent is not None else min(longest, self.computed))

    @property
    def unread(self) -> int:
        """Generated tokens that are not read yet."""
        return len(self.generated) - self.tokens_read

    @property
    def stalled(self) -> bool:
        """Whether it has no rows until more of it is read."""
        return self.unread >= POLICY.unread_tokens

    def mark_read(self, tokens: int) -> bool:
        """Counts tokens as read; returns whether the sequence may go on since.

        In this order: a thread that saw it stalled has seen fewer tokens read, and what it saw as
        generated is counted here.
        """
        self.tokens_read += tokens
        return self.unread < POLICY.unread_tokens <= self.unread + tokens

    @property
    def graph_top(self) -> int:
        """How many alternatives the graph finds for each scored row."""
        return self.top if isinstance(self.top, int) and self.top <= MAX_GRAPH_ALTERNATIVES else 0

    @property
    def needs_distribution(self) -> bool:
        """Whether every scored row needs its full distribution: for named tokens, or for more
        alternatives than the graph finds."""
        return bool(self.top) and not self.graph_top

    @property
    def streaming(self) -> bool:
        """Whether its one row left is that of a token it has generated."""
        return bool(self.generated)

    @property
    def waits_for_parent(self) -> bool:
        """Whether the state it starts from is yet to be computed by an earlier batch."""
        parent = self.parent
        return parent is not None and (parent.running or not parent.closed)

    @property
    def turns_over(self) -> bool:
        """Whether it takes no more turns of its caller: done, or a stream.

        In this order, since the thread that runs its last piece may add a token meanwhile.
        """
        return self.closed or self.computed == self.rows or self.streaming

    @property
    def ready(self) -> bool:
        """Whether it may have rows of a batch in its caller's turn."""
        return not (self.running or self.turns_over or self.waits_for_parent)

    @property
    def state_slot(self) -> int | None:
        """The slot with the state before the next row; None if there is none."""
        if self.state_lost:
            return None
        if self.slot is None and self.parent is not None:
            return self.parent.slot
        return self.slot

    def rewind(self, row: int) -> None:
        """Makes it as it was before the batch that began at a row, and has failed; without state.

        `results` may have added a token, which is drawn again.
        """
        del self.generated[max(0, self.computed - len(self.tokens)) :]
        self.computed, self.state_lost = row, True

    def hold(self, slot: int | None) -> None:
        """Takes a slot, or gives its own back. Its caller counts those of streams."""
        if self.caller is not None and isinstance(self.follow, Generation):
            self.caller.states += 1 if slot is not None else -1
        self.slot = slot

    def halo(self, longest: int) -> int:
        """Rows to compute again before the next row: 0 after a state, else up to `longest`."""
        return 0 if self.state_slot is not None else min(longest, self.computed)

    def wanted(self, start: int, stop: int, halo: int) -> tuple[range, Indices, range]:
        """Of a piece with the rows start to stop after a halo: its rows to score, their targets,
        and its rows whose distribution is wanted."""
        first = max(start, self.score_from)
        end = max(first, min(stop, len(self.tokens) - 1))
        shift = halo - start
        scored = range(first + shift, end + shift)
        targets = self.tokens[first + 1 : end + 1]
        last_is_wanted = stop == self.rows and self.follow is not None
        if self.needs_distribution:  # scores are read from the distributions
            final = stop + shift if last_is_wanted else scored.stop
            return range(0), targets[:0], range(scored.start, final)
        next_rows = range(stop - 1 + shift, stop + shift) if last_is_wanted else range(0)
        return scored, targets, next_rows

    def slice(self, start: int, stop: int) -> Indices:
        """The tokens of rows start to stop, given or generated, int64."""
        given = len(self.tokens)
        if stop <= given:
            return self.tokens[start:stop]
        generated = self.generated[max(start - given, 0) : stop - given]
        return np.concatenate([self.tokens[start:given], np.array(generated, np.int64)])


@dataclass(frozen=True, slots=True)
class Top:
    """Alternatives of n rows: the most probable tokens, best first, or those that were named.

    ids: int64 [n, k]; logprobs: float32 [n, k].
    """

    ids: Indices
    logprobs: Floats


@dataclass(frozen=True, slots=True)
class Scored:
    """Log-probabilities of the next tokens of consecutive rows, float32 [n], in order.

    ranks: int64 [n], 1 for the most probable; present if `top` is.
    """

    logprobs: Floats
    top: Top | None
    ranks: Indices | None = None


@dataclass(frozen=True, slots=True)
class Distribution:
    """Log-probabilities of every possible next token after the last, float32 [V]."""

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
    """The engine could not run the sequence; `stopped` if it accepts no work any more.

    retry_seconds: set if the sequence had no row in time; when to try again.
    """

    message: str
    stopped: bool = False
    retry_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """All results have been delivered."""


Event = Scored | Distribution | Generated | Failed | Finished


def top_of(logprobs: Floats, wanted: TopWanted) -> Top:
    """The tokens wanted of each row of float32 [n, V]; equally probable ones by rising id."""
    if isinstance(wanted, tuple):
        ids = np.tile(np.array(wanted, np.int64), (len(logprobs), 1))
    else:
        ids = np.stack([best(row, wanted) for row in logprobs])
    return Top(ids, np.take_along_axis(logprobs, ids, 1))
