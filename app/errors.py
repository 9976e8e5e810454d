"""Exceptions, grouped by who caused them. `api.http.errors` makes them responses."""

from __future__ import annotations


class RequestError(Exception):
    """The caller's fault. field: its name, in the error's `param`. code: for programs."""

    status = 400
    code: str | None = None

    def __init__(self, message: str, field: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.field = message, field
        self.code = code or type(self).code


class TooLargeError(RequestError):
    """More bytes, texts or tokens than a limit allows; the message names the limit."""

    status = 413
    code = "request_too_large"


class UnknownModelError(RequestError):
    """A model that this server does not have."""

    status = 404
    code = "model_not_found"


class OverloadError(Exception):
    """Too much is waiting or open. retry_seconds: when the same request would be accepted if
    nothing else came; before its body is read, or of open bodies, about."""

    def __init__(self, message: str, retry_seconds: int) -> None:
        super().__init__(message)
        self.message, self.retry_seconds = message, retry_seconds


class DeadlineError(Exception):
    """A request has no answer by the time that it gave."""

    def __init__(self, message: str = "no answer within the time that the request gave") -> None:
        super().__init__(message)


STOPPING = "the server is stopping"
"""The message of NotReadyError when the server stops."""


class NotReadyError(Exception):
    """The model is still being loaded, or the server is stopping."""


class UnloadableError(NotReadyError):
    """One of the models cannot be loaded; the others are unaffected."""


class LateBatchError(NotReadyError):
    """A batch of the engine takes too long. It may end; what waits for the engine waits on."""


class EngineError(Exception):
    """The engine failed; the caller may try again."""


class NoMemoryError(EngineError):
    """A batch lacked memory; fewer rows may run."""
