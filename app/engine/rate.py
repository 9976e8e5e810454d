"""How much work an engine does in a second while more waits."""

from __future__ import annotations

import math

_MEAN_SECONDS = 1.0
"""Time over which the rate is a mean: some tens of batches, and soon after a change."""
_FIRST_SECONDS = 0.25
"""Weight of the first rate, which is from a batch or two, as if measured for this long."""


class Rate:
    """Work done in a second of wall time while texts waited, as a mean over about a second of it.

    Whatever else takes time meanwhile (streams, halos, other processes) makes it lower. While
    nothing waits it keeps its value: small batches would understate it. first: its value until
    something has waited; infinite if nothing is known.
    """

    def __init__(self, first: float = math.inf) -> None:
        self.per_second = first
        self._seconds = _FIRST_SECONDS if math.isfinite(first) else 0.0
        self._work = first * _FIRST_SECONDS if self._seconds else 0.0
        self._since: float | None = None
        """When work was counted last, if texts waited then."""

    def count(self, work: int, *, waiting: bool, now: float) -> None:
        """Counts work done by the time `now`, in seconds. waiting: whether texts wait for more."""
        since, self._since = self._since, now if waiting else None
        if since is None or not waiting:
            return
        seconds = now - since
        kept = math.exp(-seconds / _MEAN_SECONDS)
        self._seconds = self._seconds * kept + seconds
        self._work = self._work * kept + work
        if self._work > 0.0 and self._seconds > 0.0:
            self.per_second = self._work / self._seconds
