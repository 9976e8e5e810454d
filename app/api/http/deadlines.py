"""The time that a request gives: a header and a field of its body, of which the smaller counts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Request

from app.errors import DeadlineError, RequestError

HEADER = "x-request-timeout-ms"
_NAME = HEADER.encode()
_MILLISECONDS = re.compile(rb"0*[1-9][0-9]{0,11}")
"""At most 12 digits, which is 31 years: a longer number is a mistake."""


class Deadline:
    """When a request must have its answer, if it says so; it counts from here.

    A context manager: the rest of a handler is cancelled then, and DeadlineError raised. Without a
    deadline it does nothing, and sets no timer. Raises RequestError unless the header is an integer
    of at least 1.
    """

    def __init__(self, request: Request) -> None:
        loop = asyncio.get_running_loop()
        self._began, self._metrics = loop.time(), request.app.state.metrics
        self.at: float | None = None
        """The time, by the event loop's clock."""
        self._expired = False
        self._timer: asyncio.TimerHandle | None = None
        for name, value in request.scope["headers"]:
            if name == _NAME:
                if not _MILLISECONDS.fullmatch(value):
                    raise RequestError(f"{HEADER}: must be an integer of at least 1", HEADER)
                self.limit(int(value) / 1000)

    def limit(self, seconds: float | None) -> Deadline:
        """Shortens the time to `seconds` from its beginning; None changes nothing. Returns it."""
        if seconds is not None:
            at = self._began + seconds
            self.at = at if self.at is None else min(self.at, at)
        return self

    def failure(self) -> DeadlineError:
        """The error when it is over, which is counted."""
        self._metrics.rejected.labels("timeout").inc()
        return DeadlineError()

    def __enter__(self) -> None:
        if self.at is not None:
            task = asyncio.current_task()
            assert task is not None
            self._task = task
            self._timer = task.get_loop().call_at(self.at, self._expire)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._timer is None:
            return
        self._timer.cancel()
        if self._expired and self._task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise self.failure() from None

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()


def until(deadline: Deadline | None, parts: AsyncGenerator[Any]) -> AsyncGenerator[Any]:
    """The parts of an answer that has begun. Raises DeadlineError when the next comes too late."""
    if deadline is None or deadline.at is None:
        return parts
    return _until(deadline, parts)


async def _until(deadline: Deadline, parts: AsyncGenerator[Any]) -> AsyncGenerator[Any]:
    try:
        while True:
            try:
                async with asyncio.timeout_at(deadline.at):
                    part = await anext(parts)
            except TimeoutError:
                raise deadline.failure() from None
            except StopAsyncIteration:
                return
            yield part
    finally:
        await parts.aclose()
