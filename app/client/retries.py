"""When a request is sent again, and after which pause.

Only if no work is done twice: a server that is busy (429, 503) or was not reached has not begun.
After a broken connection it may have, so the request is sent again only if it always has the same
answer (`repeatable`). A timeout is not retried.
"""

from __future__ import annotations

import httpx

from app.client.errors import refusal, unreachable

Failure = httpx.Response | httpx.TransportError
"""An answer other than 200, whose body has been read, or why there is none."""

_BUSY = frozenset({429, 503})
_PAUSE_SECONDS = 1.0
_MAX_PAUSE_SECONDS = 120.0
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 8.0


class Retries:
    """The tries of one request to `url`. max_attempts: their number, including the first."""

    def __init__(self, max_attempts: int, url: object) -> None:
        self.max_attempts, self.url = max_attempts, url
        self._failed = 0

    def succeeded(self) -> None:
        """Starts counting again, because part of the answer came."""
        self._failed = 0

    def pause(self, failure: Failure, *, repeatable: bool) -> float:
        """Seconds until the next try.

        Raises ApiError or UnreachableError, which describe the failure, if there is none.
        """
        self._failed += 1
        last = self._failed >= self.max_attempts
        if isinstance(failure, httpx.Response):
            if last or failure.status_code not in _BUSY:
                raise refusal(failure)
            return _retry_after(failure)
        not_begun = isinstance(failure, httpx.ConnectError | httpx.ConnectTimeout)
        broken = isinstance(failure, httpx.NetworkError | httpx.RemoteProtocolError)
        if last or not (not_begun or (repeatable and broken)):
            raise unreachable(failure, self.url)
        pause: float = _FIRST_PAUSE_SECONDS * 2 ** (self._failed - 1)
        return min(_LONGEST_PAUSE_SECONDS, pause)


def _retry_after(response: httpx.Response) -> float:
    """The seconds of the header `retry-after`; one second without a valid one."""
    try:
        seconds = float(response.headers["retry-after"])
    except (KeyError, ValueError):
        return _PAUSE_SECONDS
    return seconds if 0 <= seconds <= _MAX_PAUSE_SECONDS else _MAX_PAUSE_SECONDS
