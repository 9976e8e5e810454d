"""How long the running batches have been running, and whether that is too long."""

from __future__ import annotations

import logging
import math
import threading
import time

_log = logging.getLogger(__name__)
GIVE_UP_TIMES = 3
"""Times `max_batch_seconds` after which a batch is taken for one that never ends. The time between
is for a machine that was suspended or swaps: a restart costs all work, so it comes last."""

_JOIN_SECONDS = 0.1
"""Interval at which a batch that may be late is looked at."""


class BatchWatch:
    """The batches that the threads of an engine run now. max_seconds: `max_batch_seconds`."""

    def __init__(self, threads: int, max_seconds: float) -> None:
        self.max_seconds = max_seconds
        self._begins = [math.inf] * threads  # read by other threads, without a lock
        self._reported = 0.0

    def begin(self, thread: int) -> None:
        """Notes that a thread begins a batch."""
        self._begins[thread] = time.monotonic()

    def end(self, thread: int) -> None:
        """Notes that it has ended."""
        self._begins[thread] = math.inf

    def join(self, thread: threading.Thread) -> bool:
        """Waits for a thread of the engine to end, but not for a batch that is late.

        Returns whether it has ended.
        """
        while thread.is_alive() and not self.late:
            thread.join(_JOIN_SECONDS)
        return not thread.is_alive()

    @property
    def seconds(self) -> float:
        """How long the oldest running batch has been running; 0 if none runs."""
        return max(0.0, time.monotonic() - min(self._begins))

    @property
    def late(self) -> bool:
        """Whether a batch runs longer than `max_batch_seconds`."""
        return time.monotonic() - min(self._begins) > self.max_seconds  # asked for each request

    @property
    def message(self) -> str:
        """Why the engine is not ready while a batch is late."""
        return (
            f"a batch of the engine has been running for {self.seconds:.1f} s, longer than "
            f"max_batch_seconds, {self.max_seconds:g}"
        )

    def hangs(self) -> bool:
        """Whether a batch is so late that it will not end. Logs once that one is late, and that
        it has ended."""
        begin = min(self._begins)
        if self._reported and begin != self._reported:
            _log.warning("engine batch has ended at last")
            self._reported = 0.0
        if self.late and not self._reported:
            _log.error("engine not ready: %s", self.message)
            self._reported = begin
        return self.seconds > GIVE_UP_TIMES * self.max_seconds
