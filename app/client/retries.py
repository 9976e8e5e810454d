"""When a request is sent again, and after which pause.

Only if no work is done twice: a server that is busy (429, 503) or was not reached has not begun.
After a broken connection it may have, so the request is sent again only if it always has the same
answer (`repeatable`). A timeout is not retried.
"""

from __future__ import annotations

import httpx

_BUSY = frozenset({429, 503})
_PAUSE_SECONDS = 1.0
_MAX_PAUSE_SECONDS = 120.0
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 8.0


class Retries:
    """The tries of one request. max_attempts: their number, including the first."""

    def __init__(self, max_attempts: int) -> None:
        self.max_attempts = max_attempts
        self._failed = 0

    def succeeded(self) -> None:
        """Starts counting again, because part of the answer came."""
        self._failed = 0

    def pause(
        self, failure: httpx.Response | httpx.TransportError, *, repeatable: bool
    ) -> float | None:
        """Seconds until the next try; None if there is no further one."""
        self._failed += 1
        if self._failed >= self.max_attempts:
            return None
        if isinstance(failure, httpx.Response):
            return _retry_after(failure) if failure.status_code in _BUSY else None
        if isinstance(failure, httpx.ConnectError | httpx.ConnectTimeout) or (
            repeatable and isinstance(failure, httpx.NetworkError | httpx.RemoteProtocolError)
        ):
            pause: float = _FIRST_PAUSE_SECONDS * 2 ** (self._failed - 1)
            return min(_LONGEST_PAUSE_SECONDS, pause)
        return None


def _retry_after(response: httpx.Response) -> float:
    """The seconds of the header `retry-after`; one second without a valid one."""
    try:
        seconds = float(response.headers["retry-after"])
    except (KeyError, ValueError):
        return _PAUSE_SECONDS
    return seconds if 0 <= seconds <= _MAX_PAUSE_SECONDS else _MAX_PAUSE_SECONDS
