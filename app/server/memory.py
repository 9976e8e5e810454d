"""Returns memory of replaced models to the system (glibc) and controls garbage collection."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def bound_arenas() -> None:
    """Bounds the free memory that each of the allocator's arenas keeps at its end.

    `trim` does not reach that memory, and glibc keeps up to 64 MiB of it once weights were freed.
    """
    with suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most; glibc itself raises it to this
        libc.mallopt(_M_TRIM_THRESHOLD, 8 << 20)


def trim() -> None:
    """Gives free pages back to the system."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def freeze_gc() -> None:
    """Excludes all present objects from garbage collection.

    A collection that visits all modules and models stops every request for about 20 ms, and runs
    every few thousand requests.
    """
    gc.collect()
    gc.freeze()


def collect_cycles() -> None:
    """Frees cycles of unused objects, excluded ones too."""
    frozen = gc.get_freeze_count() > 0
    gc.unfreeze()
    gc.collect()
    if frozen:
        gc.freeze()
