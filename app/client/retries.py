"""When a request is sent again, and after which pause.

Only what costs nothing twice: a server that is busy (429, 503) has not begun, and one that was not
reached neither. A connection that broke may have left work behind, so a request is sent again only
if its answer is the same each time (`repeatable`). An answer that is late is waited for.
"""

from __future__ import annotations

import httpx

BUSY = frozenset({429, 503})
PAUSE_SECONDS = 1.0
MAX_PAUSE_SECONDS = 120.0
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_OWN_SECONDS = 8.0


class Retries:
    """The tries of one request. max_attempts: how many there are, the first included."""

    def __init__(self, max_attempts: int) -> None:
        self.max_attempts = max_attempts
        self._failed = 0

    def succeeded(self) -> None:
        """Part of the answer came: the count begins anew."""
        self._failed = 0

    def pause(
        self, failure: httpx.Response | httpx.TransportError, *, repeatable: bool
    ) -> float | None:
        """Seconds until the next try, None if there is none."""
        self._failed += 1
        if self._failed >= self.max_attempts:
            return None
        if isinstance(failure, httpx.Response):
            return pause_seconds(failure) if failure.status_code in BUSY else None
        if isinstance(failure, httpx.ConnectError | httpx.ConnectTimeout) or (
            repeatable and isinstance(failure, httpx.NetworkError | httpx.RemoteProtocolError)
        ):
            pause: float = _FIRST_PAUSE_SECONDS * 2 ** (self._failed - 1)
            return min(_LONGEST_OWN_SECONDS, pause)
        return None


def pause_seconds(response: httpx.Response) -> float:
    """What `retry-after` says, in seconds; a second where it says nothing that we read."""
    try:
        seconds = float(response.headers["retry-after"])
    except (KeyError, ValueError):
        return PAUSE_SECONDS
    return seconds if 0 <= seconds <= MAX_PAUSE_SECONDS else MAX_PAUSE_SECONDS
