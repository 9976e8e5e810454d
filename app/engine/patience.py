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
        self._callers: deque[CallerQueue] = deque()

    def add(self, caller: CallerQueue) -> None:
        """Notes a caller, unless it waits however long, or has been served."""
        if not (caller.begun or caller.patient):
            self._callers.append(caller)

    def expired(self) -> list[CallerQueue]:
        """Removes the callers that have waited too long; returns them."""
        latest = time.monotonic() - self.max_seconds
        found: list[CallerQueue] = []
        while self._callers and (self._callers[0].since <= latest or self._callers[0].begun):
            caller = self._callers.popleft()
            if not caller.begun:
                found.append(caller)
        return found
