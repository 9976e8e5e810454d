"""Scans for changed bundles: at SIGHUP, and at an interval if one is set."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING

from app.server.memory import collect_cycles

if TYPE_CHECKING:
    from app.catalog.catalog import Catalog

_log = logging.getLogger(__name__)
_LINGER_SECONDS = 5.0
"""Interval at which garbage is collected while a replaced model is still in memory."""


@asynccontextmanager
async def watch_bundles(catalog: Catalog, seconds: float) -> AsyncIterator[None]:
    """Reloads changed bundles while the block runs. seconds: between scans; 0 for SIGHUP only."""
    asked = asyncio.Event()
    with _on_hangup(asked.set):
        tasks = [
            asyncio.create_task(_watch(catalog, seconds, asked)),
            asyncio.create_task(_collect_lingering(catalog)),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _watch(catalog: Catalog, seconds: float, asked: asyncio.Event) -> None:
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds or None):
                await asked.wait()
        at_once = asked.is_set()
        asked.clear()
        try:
            await asyncio.to_thread(catalog.refresh, at_once=at_once)
        except Exception:  # our fault: the next scan may succeed
            _log.exception("bundles not scanned")


async def _collect_lingering(catalog: Catalog) -> None:
    while True:
        await asyncio.sleep(_LINGER_SECONDS)
        if catalog.lingering:
            collect_cycles()  # stops everything for tens of milliseconds


@contextmanager
def _on_hangup(ask: Callable[[], None]) -> Iterator[None]:
    """Calls `ask` at SIGHUP, where the signal exists and this thread may handle it."""
    loop, hangup = asyncio.get_running_loop(), getattr(signal, "SIGHUP", None)
    if hangup is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    loop.add_signal_handler(hangup, ask)
    try:
        yield
    finally:
        loop.remove_signal_handler(hangup)
