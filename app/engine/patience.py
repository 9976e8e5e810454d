"""How long callers wait for their first row, and which have waited too long."""

from __future__ import annotations

import time
from collections import deque

from app.engine.turns import CallerQueue


class Unserved:
    """Callers that have had no row, in the order in which they came.

    Only the oldest are looked at, since a full queue has tens of thousands.
    """

    def __init__(self, max_seconds: float) -> None:
        self.max_seconds = max_seconds
        self._callers: deque[tuple[float, CallerQueue]] = deque()

    def add(self, caller: CallerQueue) -> None:
        """Notes a caller that comes now, unless it waits however long, or has been served."""
        if not (caller.begun or caller.patient):
            self._callers.append((time.monotonic(), caller))

    def expired(self) -> list[CallerQueue]:
        """Removes the callers that have waited too long; returns them."""
        latest = time.monotonic() - self.max_seconds
        found: list[CallerQueue] = []
        while self._callers and (self._callers[0][0] <= latest or self._callers[0][1].begun):
            caller = self._callers.popleft()[1]
            if not caller.begun:
                found.append(caller)
        return found
