"""Exceptions of the clients."""

from __future__ import annotations

import httpx


class ClientError(Exception):
    """Why there is no result, in one line: a problem of a file or of the server."""


class UnreachableError(ClientError):
    """There is no complete answer: the connection failed or broke."""


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
