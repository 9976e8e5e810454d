"""How many connections the system's limit of open files allows."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass

_log = logging.getLogger(__name__)

_FILES = 128
"""Descriptors for everything else: bundles while they are copied and loaded, logs, libraries, and
what `uvicorn_server.Server` listens on."""
_MOST_CONNECTIONS = 8192
"""An idle connection takes about 10 kB, and a look at all of them 10 ms each second."""
_MOST_BACKLOG = 2048
_UNLIMITED = 1 << 20


@dataclass(frozen=True, slots=True)
class Descriptors:
    """Shares of the descriptors. guests: connections over the limit, for the health. backlog:
    connections that the system accepts before the server counts them."""

    connections: int
    guests: int
    backlog: int


def shares(limit: int, max_connections: int = 0) -> Descriptors:
    """Divides a limit of descriptors. max_connections: 0 for as many as there is room for."""
    guests, backlog = min(128, limit // 8), min(_MOST_BACKLOG, limit // 8)
    room = max(limit // 4, limit - guests - backlog - _FILES)
    if max_connections > room:
        _log.warning(
            "max_connections %d is lowered to %d, since only %d files may be open (ulimit -n)",
            *(max_connections, room, limit),
        )
    return Descriptors(min(max_connections or _MOST_CONNECTIONS, room), guests, backlog)


def raise_limit(max_connections: int = 0) -> None:
    """Raises the soft limit of open files, if it is too low, as far as the hard limit allows.

    It is 1,024 on many systems for the sake of programs that use `select`; this one does not.
    """
    wanted = (max_connections or _MOST_CONNECTIONS) + 128 + _MOST_BACKLOG + _FILES
    with suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def open_files_limit() -> int:
    """The number of files that this process may open."""
    with suppress(ImportError, OSError):
        import resource

        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return _UNLIMITED if soft == resource.RLIM_INFINITY else soft
    return 1024
