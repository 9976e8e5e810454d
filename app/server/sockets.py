"""What a server that stops asks of its sockets."""

from __future__ import annotations

import ctypes
import select
import socket
import struct
import sys
from contextlib import suppress

_SO_ATTACH_FILTER = 26  # of Linux
# A classic BPF program: (code, jump if true, jump if false, operand) of each step.
_DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte of the TCP header that has the flags
    (0x54, 0, 0, 0x12),  # keep SYN and ACK
    (0x15, 0, 1, 0x02),  # SYN alone?
    (0x06, 0, 0, 0),  # drop the packet
    (0x06, 0, 0, 0xFFFFFFFF),  # accept it
)


def refuse_new(descriptor: int) -> None:
    """Has a listening socket take no further connections; those begun are still accepted.

    Closing it resets the connections that are established and not yet accepted, with the requests
    already sent on them. So first the system drops the packets that would begin others; their
    clients repeat them after a second. Does nothing where the system cannot.
    """
    if sys.platform != "linux":
        return
    program = b"".join(struct.pack("HBBI", *step) for step in _DROP_SYN)
    steps = ctypes.create_string_buffer(program, len(program))
    pointer = struct.pack("HP", len(_DROP_SYN), ctypes.addressof(steps))
    with suppress(OSError), socket.socket(fileno=descriptor) as listening:
        try:
            listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)
        finally:
            listening.detach()  # it is the server's


def has_unread(descriptor: int) -> bool:
    """Whether something has arrived on a socket and is not read, or not accepted, yet.

    False where the system cannot tell (Windows).
    """
    if sys.platform == "win32":
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
