"""Moves long work off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

INLINE_CHARACTERS = 4096
"""Work on more characters or tokens goes to another thread. Tokenising this many takes 1.5 ms, and
the rest of a request's work less; handing work to a thread costs 0.1 ms."""

Result = TypeVar("Result")


async def by_size(size: int, work: Callable[[], Result]) -> Result:
    """The result of `work`, which is about `size` characters or tokens."""
    return work() if size <= INLINE_CHARACTERS else await asyncio.to_thread(work)
