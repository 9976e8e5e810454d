"""Exceptions of the clients, and when a request is sent again, and after which pause.

Only if no work is done twice: a server that is busy (429, 503) or was not reached has not begun.
Not if the server says that it would be in vain (`x-should-retry: false`).
After a broken connection it may have, so the request is sent again only if it always has the same
answer (`repeatable`). A timeout is not retried.
"""

from __future__ import annotations

import httpx

Failure = httpx.Response | httpx.TransportError
"""An answer other than 200, whose body has been read, or why there is none."""

_BUSY = frozenset({429, 503})
_PAUSE_SECONDS = 1.0
_MAX_PAUSE_SECONDS = 120.0
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 8.0


class ClientError(Exception):
    """A fault of a file or of the server, explained in one line."""


class UnreachableError(ClientError):
    """The connection failed, or broke before the answer was complete."""


class ApiError(ClientError):
    """An error of the server, with the `field` and `code` of its body, or None."""

    def __init__(
        self, message: str, status: int, field: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.field, self.code = message, status, field, code

    def __reduce__(self) -> tuple[type[ApiError], tuple[object, ...]]:
        return type(self), (self.message, self.status, self.field, self.code)


def unreachable(error: httpx.TransportError, url: object) -> UnreachableError:
    """The error for a failed connection, with advice."""
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return UnreachableError(
            f"no answer from {url} in time; a larger timeout_seconds waits longer"
        )
    return UnreachableError(
        f"no answer from {url}: {error or type(error).__name__}; `convlm serve` starts a server"
    )


def refusal(response: httpx.Response) -> ApiError:
    """The error in a response whose body has been read."""
    try:
        body = response.json()
    except ValueError:
        body = None
    return refusal_of(body, response.status_code, response.reason_phrase)


def refusal_of(body: object, status: int, default: str) -> ApiError:
    """The error in a body; `default` is the message if it has none."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return ApiError(default, status)
    message = " ".join(str(error.get("message", default)).split())
    return ApiError(message, status, error.get("param"), error.get("code"))


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
            in_vain = failure.headers.get("x-should-retry") == "false"
            if last or in_vain or failure.status_code not in _BUSY:
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
