"""The bytes of all large bodies that are open, against a limit."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from app.errors import OverloadError


class OpenBodies:
    """Bytes that requests hold: what has arrived of a body, until its response is complete.

    Used on the event loop alone.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self.parser = ThreadPoolExecutor(1, "long-bodies")
        """Parses very long bodies, one at a time: threads that parse together keep the interpreter
        from the event loop one after the other."""

    def open(self) -> OpenBody:
        """A body of the current task's request, closed when the task ends, however it ends."""
        body = OpenBody(self)
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(body.close)
        return body


class OpenBody:
    """The bytes that one request holds."""

    __slots__ = ("bodies", "bytes")

    def __init__(self, bodies: OpenBodies) -> None:
        self.bodies, self.bytes = bodies, 0

    def hold(self, count: int) -> None:
        """Says that the request holds so many bytes now.

        Raises OverloadError, changing nothing, if all hold more than the limit with them; a body
        that is alone may be as long as it likes.
        """
        more = count - self.bytes
        others = self.bodies.bytes - self.bytes
        if more > 0 and others and others + count > self.bodies.limit:
            limit = self.bodies.limit
            raise OverloadError(f"open requests hold over max_open_body_bytes, {limit}", 1)
        self.bytes = count
        self.bodies.bytes += more

    def add(self, count: int) -> None:
        """As `hold`, for so many bytes more."""
        self.hold(self.bytes + count)

    def close(self, *_: object) -> None:
        """Says that the request holds none."""
        self.bodies.bytes -= self.bytes
        self.bytes = 0
