"""What can go wrong between a client and a server, as exceptions."""

from __future__ import annotations

import httpx


class ClientError(Exception):
    """What keeps a client from its result: a file, a line of it, the server. One line."""


class UnreachableError(ClientError):
    """No whole answer came: the connection failed, or broke off."""


class ApiError(ClientError):
    """The server's error. `field` and `code` are those of its body, or None."""

    def __init__(
        self, message: str, status: int, field: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.field, self.code = message, status, field, code

    def __reduce__(self) -> tuple[type[ApiError], tuple[object, ...]]:
        return type(self), (self.message, self.status, self.field, self.code)


def unreachable(error: httpx.TransportError, url: object) -> UnreachableError:
    """An error of the connection, with what to do about it."""
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return UnreachableError(
            f"no answer from {url} in time; timeout_seconds is how long is waited"
        )
    return UnreachableError(
        f"no answer from {url}: {error or type(error).__name__}; `convlm serve` starts a server"
    )


def refusal(response: httpx.Response) -> ApiError:
    """The error that a response, whose body is read, holds."""
    try:
        body = response.json()
    except ValueError:
        body = None
    return refusal_of(body, response.status_code, response.reason_phrase)


def refusal_of(body: object, status: int, otherwise: str) -> ApiError:
    """The error that a body holds; `otherwise` is the message if it holds none."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return ApiError(otherwise, status)
    message = " ".join(str(error.get("message", otherwise)).split())
    return ApiError(message, status, error.get("param"), error.get("code"))
