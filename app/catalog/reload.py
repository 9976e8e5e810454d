"""When bundles are looked at for changes: at SIGHUP, and at an interval if one is set."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from app.catalog.catalog import Catalog
from app.server.memory import collect

_log = logging.getLogger(__name__)
_LINGER_SECONDS = 5.0
"""How often replaced models are looked for in cycles of unused objects."""


@asynccontextmanager
async def watching(catalog: Catalog, seconds: float) -> AsyncIterator[None]:
    """Follows changes of bundles while the block runs. seconds: between looks; 0 for none."""
    asked = asyncio.Event()
    with _on_hangup(asked.set):
        tasks = [
            asyncio.create_task(_watch(catalog, seconds, asked)),
            asyncio.create_task(_collect(catalog)),
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
        except Exception:  # a fault of ours: the next look may go well
            _log.exception("bundles not looked at")


async def _collect(catalog: Catalog) -> None:
    while True:
        await asyncio.sleep(_LINGER_SECONDS)
        if catalog.lingering:
            collect()  # stops everything for some tens of milliseconds


@contextmanager
def _on_hangup(ask: Callable[[], None]) -> Iterator[None]:
    """Asks at SIGHUP, where there is one and this thread may handle it."""
    loop, hangup = asyncio.get_running_loop(), getattr(signal, "SIGHUP", None)
    if hangup is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    loop.add_signal_handler(hangup, ask)
    try:
        yield
    finally:
        loop.remove_signal_handler(hangup)
