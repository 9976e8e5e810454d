"""Memory that replaced models leave, given back to the system. Elsewhere than on glibc: nothing."""

from __future__ import annotations

import ctypes
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
