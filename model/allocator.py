"""How the C library gives memory back, for programs that ask for the same amounts over and over."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
"""Parameters of glibc's mallopt(3)."""


def keep_freed_memory() -> None:
    """Keeps what is freed for what is asked for next, in this process, from now on.

    An update of training frees some hundred megabytes and asks for them again. By default glibc
    returns large blocks to the system at once, which hands them out again page by page, zeroed;
    and what another thread frees, as that of the gradients, goes to a heap of its own. Does
    nothing where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_ARENA_MAX, 1)
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
