"""Memory and its upkeep: what replaced models leave, on glibc, and cycles of unused objects."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_KEPT_BYTES = 8 << 20
_MAPPED_BYTES = 32 << 20
"""The most that glibc allows; its own aim, which it would reach by itself."""


def keep_little() -> None:
    """Bounds what each of the allocator's arenas keeps at its end.

    `trim` does not reach it there, and unasked glibc keeps up to 64 MiB once weights were freed.
    """
    with suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def trim() -> None:
    """Gives free pages back to the system."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def settle() -> None:
    """Leaves what there is now out of the searches for cycles of unused objects.

    A search that goes through all modules and models stops every request for some 20 ms, and comes
    by itself every few thousand requests.
    """
    gc.collect()
    gc.freeze()


def collect() -> None:
    """Frees cycles of unused objects, also among what was left out."""
    settled = gc.get_freeze_count() > 0
    gc.unfreeze()
    gc.collect()
    if settled:
        gc.freeze()
