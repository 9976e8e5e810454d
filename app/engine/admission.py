"""Whether a request is taken: only if its work can be done within the time that a queue may take.

Work is rows of texts and prompts, halos before their first rows included. What may be generated is
not: a stream has at most a bounded number of unread tokens, and the slots bound the streams.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
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

STANDING_SHARE = 0.25
"""Of that, what is filled once the queue stands: it was full, and has not been short for a time. A
full queue serves a burst, but under a lasting overload it is delay alone: nobody is served sooner,
and those who wait 5 s leave when their turn comes. At 2 and 3 times the capacity, a full queue of 8
s and half of the clients leaving after 5 s, a third of the rows were for clients who had left."""

STANDING_AFTER = 0.25
"""Of `max_queue_seconds`, the time after a refusal from which a queue stands."""

SHORT_SHARE = 0.05
"""Of what may be filled, how much is so little that the overload is over."""

_MAX_PAUSE_SECONDS = 1.0
"""Time after which the first of the lines that wait looks again whether there is room."""


class Admission:
    """Compares an engine's outstanding work, in seconds at its measured rate, with a limit."""

    def __init__(
        self,
        engine: Engine,
        max_queue_seconds: float,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine, self.metrics, self._clock = engine, metrics, clock
        self.max_queue_seconds = max_queue_seconds
        self._full_since: float | None = None
        """When the first request was refused since the queue was short."""
        self._lines: tuple[deque[_Place], deque[_Place]] = deque(), deque()
        """Lines that wait, the first first: interactive ones, and bulk."""
        for loop in engine.loops:
            loop.retry_seconds = self.retry_seconds_of

    @property
    def limit(self) -> float:
        """Seconds of outstanding work up to which requests are taken now."""
        most = ADMITTED_SHARE * self.max_queue_seconds
        if self._full_since is None:
            return most
        engine = self.engine
        large = sum(
            caller.due for caller in tuple(engine.large)
        )  # these may take long without a queue
        if engine.due - engine.bulk_due - large <= SHORT_SHARE * most * engine.tokens_per_second:
            self._full_since = None
            return most
        stands = self._clock() - self._full_since >= STANDING_AFTER * self.max_queue_seconds
        return most * STANDING_SHARE if stands else most

    @property
    def tokens(self) -> int:
        """Outstanding tokens: submitted and not delivered, or to be submitted as others are."""
        callers = [caller for caller in self.engine.large if caller.due]
        return self.engine.due + sum(caller.unsubmitted for caller in callers)

    @property
    def seconds(self) -> float:
        """How long the outstanding work takes at the measured rate."""
        return self.tokens / self.engine.tokens_per_second

    def check(self, tokens: Callable[[], int]) -> None:
        """Raises OverloadError if even one interactive token more were too much.

        tokens: those of the request, about; asked only then, for when it would be taken.
        """
        limit = self.limit
        waiting, rate = self._waiting(1, limit, bulk=False)
        if waiting and waiting + 1 > limit * rate:
            self.admit(max(1, tokens()), bulk=False)

    def admit(self, tokens: int, *, bulk: bool) -> None:
        """Raises OverloadError if a request of so many tokens cannot be served in time.

        Whatever its size, it is taken if nothing is outstanding. Bulk does not count for
        interactive requests, but for the share of the rate that is reserved for it.
        """
        retry_seconds = self.retry_seconds(tokens, bulk=bulk)
        if not retry_seconds:
            return
        if self._full_since is None:
            self._full_since = self._clock()
        waiting, rate = self._waiting(tokens, self.limit, bulk=bulk)
        self.metrics.rejected.labels("overloaded").inc()
        raise OverloadError(
            f"{waiting} tokens are waiting and this request has {tokens}, which would take "
            f"{(waiting + tokens) / rate:.1f} s, too near to max_queue_seconds, "
            f"{self.max_queue_seconds:g}; try again in {retry_seconds} s",
            retry_seconds,
        )

    async def wait_for_room(self, tokens: int, *, bulk: bool) -> None:
        """Waits until lines may be submitted, which the caller must do at once.

        First come, first served: or else many small lines would always leave too little for a
        large one. Those of bulk wait for bulk alone: they have a share of the rate whatever else
        waits.
        """
        lines = self._lines[bulk]
        place = _Place()
        lines.append(place)
        pause = min(_MAX_PAUSE_SECONDS, self.max_queue_seconds / 4)
        try:
            while lines[0] is not place or not self._has_room_for_lines(tokens, bulk=bulk):
                await place.wait(pause)
        finally:
            lines.remove(place)
            if lines:
                lines[0].wake()

    def retry_seconds(self, tokens: int, *, bulk: bool, gone: int = 0) -> int:
        """Seconds until a request of so many tokens is admitted, 0 if it is now.

        gone: outstanding tokens that do not count any more.
        """
        limit = self.limit
        waiting, rate = self._waiting(tokens, limit, bulk=bulk)
        waiting = max(0, waiting - gone)
        excess = min(waiting, waiting + tokens - limit * rate)  # over the limit: none is left
        return max(1, math.ceil(excess / rate)) if excess > 0 else 0

    def retry_seconds_of(self, caller: CallerQueue, gone: int) -> int:
        """As `retry_seconds`, at least 1, for one of the callers that are dropped together."""
        return max(1, self.retry_seconds(caller.outstanding, bulk=caller.bulk, gone=gone))

    def _has_room_for_lines(self, tokens: int, *, bulk: bool) -> bool:
        limit = self.limit
        if bulk:
            waiting, rate = self.engine.bulk_due, self.engine.tokens_per_second
        else:
            waiting, rate = self._waiting(tokens, limit, bulk=False)
        return not waiting or waiting + tokens <= limit * rate

    def _waiting(self, tokens: int, limit: float, *, bulk: bool) -> tuple[int, float]:
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
        half = limit * rate / 2
        for caller in tuple(engine.large):  # engine threads ask too
            due = caller.due
            if due and (bulk or not caller.bulk):
                total = due + caller.unsubmitted
                waiting += (total if tokens > half else min(total, int(half))) - due
        return waiting, rate


class _Place:
    """A place among the lines that wait. Those before and after it may be of other event loops."""

    def __init__(self) -> None:
        self._loop, self._event = asyncio.get_running_loop(), asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Waits until it is the first, or for so long."""
        self._event.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()

    def wake(self) -> None:
        """Says that it is the first now."""
        self._loop.call_soon_threadsafe(self._event.set)
