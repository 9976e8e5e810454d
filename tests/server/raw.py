"""Raw connections to the live server."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlparse

from app.settings import Settings
from app.wire.models import ErrorResponse
from tests.api.conftest import PATIENCE_SECONDS, Server, serving


def connect(server: Server, *sent: bytes, receive_bytes: int = 0) -> socket.socket:
    """A connection on which something has been sent. receive_bytes: of its buffer, if set."""
    url = urlparse(server.url)
    assert url.hostname
    assert url.port
    connection = socket.socket()
    connection.settimeout(PATIENCE_SECONDS)
    if receive_bytes:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.connect((url.hostname, url.port))
    connection.sendall(b"".join(sent))
    return connection


def rest(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    found = b""
    while part := connection.recv(1 << 16):
        found += part
    return found


def answered(server: Server, *sent: bytes) -> bytes:
    """All that comes on a connection of its own until the server closes it."""
    with connect(server, *sent) as connection:
        return rest(connection)


def parsed(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    line, *fields = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in fields)}
    assert line.startswith("HTTP/1.1 "), answer
    return int(line.split()[1]), headers, body


def error_of(answer: bytes) -> tuple[int, str | None]:
    """Status and code of an answer that is an error in the usual shape and the last one."""
    status, headers, body = parsed(answer)
    assert headers["content-type"] == "application/json"
    assert headers["connection"] == "close"
    assert headers["x-request-id"]
    error = ErrorResponse.model_validate(json.loads(body)).error
    assert error.message
    return status, error.code


@contextmanager
def limited(folder: Any, **settings: Any) -> Iterator[Server]:
    """A server with other limits."""
    with serving(Settings(bundle=folder, device="cpu", allowed_hosts="*", **settings)) as server:
        yield server
