"""Whether a request is taken: only if its work can be done within the time that a queue may take.

Work is rows of texts and prompts, halos before their first rows included. What may be generated is
not: a stream has at most a bounded number of unread tokens, and the slots bound the streams.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from app.engine.policy import POLICY
from app.errors import OverloadError
from app.metrics import Metrics

if TYPE_CHECKING:
    from app.engine.engine import Engine
    from app.engine.turns import CallerQueue

LARGE_TOKENS = 8192
"""A request of more tokens is looked at by itself: it is submitted in several lots."""

ADMITTED_SHARE = 0.8
"""Of the time that a queue may take, what is filled: the rate changes while requests wait, and they
are to have their answers within that time. Filled to the limit, p99 was 1.1 to 1.2 of it."""


class Admission:
    """Compares an engine's outstanding work, in seconds at its measured rate, with a limit."""

    def __init__(self, engine: Engine, max_queue_seconds: float, metrics: Metrics) -> None:
        self.engine, self.metrics = engine, metrics
        self.max_queue_seconds = max_queue_seconds
        self.limit = ADMITTED_SHARE * max_queue_seconds
        for loop in engine.loops:
            loop.retry_seconds = self.retry_seconds_of

    @property
    def tokens(self) -> int:
        """Outstanding tokens: submitted and not delivered, or to be submitted as others are."""
        callers = [caller for caller in self.engine.large if caller.due]
        return self.engine.due + sum(caller.unsubmitted for caller in callers)

    @property
    def seconds(self) -> float:
        """How long the outstanding work takes at the measured rate."""
        return self.tokens / self.engine.tokens_per_second

    def check(self) -> None:
        """Raises OverloadError if even one interactive token more were too much."""
        self.admit(1, bulk=False)

    def admit(self, tokens: int, *, bulk: bool) -> None:
        """Raises OverloadError if a request of so many tokens cannot be served in time.

        Whatever its size, it is taken if nothing is outstanding. Bulk does not count for
        interactive requests, but for the share of the rate that is reserved for it.
        """
        retry_seconds = self.retry_seconds(tokens, bulk=bulk)
        if not retry_seconds:
            return
        waiting, rate = self._waiting(tokens, bulk=bulk)
        self.metrics.rejected.labels("overloaded").inc()
        raise OverloadError(
            f"{waiting} tokens are waiting and this request has {tokens}, which would take "
            f"{(waiting + tokens) / rate:.1f} s, too near to max_queue_seconds, "
            f"{self.max_queue_seconds:g}; try again in {retry_seconds} s",
            retry_seconds,
        )

    def retry_seconds(self, tokens: int, *, bulk: bool, gone: int = 0) -> int:
        """Seconds until a request of so many tokens is admitted, 0 if it is now.

        gone: outstanding tokens that do not count any more.
        """
        waiting, rate = self._waiting(tokens, bulk=bulk)
        waiting = max(0, waiting - gone)
        excess = min(waiting, waiting + tokens - self.limit * rate)  # over the limit: none is left
        return max(1, math.ceil(excess / rate)) if excess > 0 else 0

    def retry_seconds_of(self, caller: CallerQueue, gone: int) -> int:
        """As `retry_seconds`, at least 1, for one of the callers that are dropped together."""
        return max(1, self.retry_seconds(caller.outstanding, bulk=caller.bulk, gone=gone))

    def has_room_for_lines(self, tokens: int, *, bulk: bool) -> bool:
        """Whether lines may be submitted, which wait otherwise. Those of bulk wait for bulk alone:
        they have a share of the rate in any case."""
        if bulk:
            waiting, rate = self.engine.bulk_due, self.engine.tokens_per_second
        else:
            waiting, rate = self._waiting(tokens, bulk=False)
        return not waiting or waiting + tokens <= self.limit * rate

    def _waiting(self, tokens: int, *, bulk: bool) -> tuple[int, float]:
        """The outstanding tokens that count for a request of `tokens`, and the rate at which they
        are done.

        Of a large request that runs, a smaller one counts at most half of what the limit allows:
        both take turns, so that the smaller one's end comes no later.
        """
        engine = self.engine
        rate = engine.tokens_per_second
        waiting = engine.due
        if not bulk and engine.bulk_due:
            waiting -= engine.bulk_due
            rate *= 1 - POLICY.reserved_share
        half = self.limit * rate / 2
        for caller in tuple(engine.large):  # engine threads ask too
            due = caller.due
            if due and (bulk or not caller.bulk):
                total = due + caller.unsubmitted
                waiting += (total if tokens > half else min(total, int(half))) - due
        return waiting, rate
