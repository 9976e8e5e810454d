"""Requests as raw bytes, and answers read strictly: what a lenient client forgives is a fault."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) [^\r\n]*\r\n")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n]*)\r\n")
_CHUNK = re.compile(rb"([0-9A-Fa-f]+)\r\n")
_MOST_KEPT = 4 << 20
"""Bytes of an answer that are kept; of a longer one only the first status is read."""
_SLICE = 1 << 18
_PLAIN = {400, 408, 413, 414, 421, 431, 503}
"""Refusals of the protocol, before a request is known, may be plain text."""
_ERROR_FIELDS = {"message", "type", "param", "code"}
LOAD = {"overloaded", "not_ready"}
"""Codes of a 503 that a client may get."""

Part = bytes | float | asyncio.Event
"""What a client does: sends bytes, waits for seconds, waits for an event."""


class MalformedError(Exception):
    """An answer that is not HTTP, or whose body is not what its head says."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response; header names are in lower case. `end` is its last byte's place plus 1."""

    status: int
    headers: dict[str, str]
    content: bytes
    end: int

    @property
    def fault(self) -> str | None:
        """What is wrong with the response, whatever was asked; None if nothing is."""
        kind = self.headers.get("content-type", "")
        if "json" not in kind or "ndjson" in kind:
            plain = self.status < 400 or (self.status in _PLAIN and len(self.content) < 1000)
            return None if plain else f"{self.status} without the shape of an error"
        try:
            document = json.loads(self.content)
        except ValueError:
            return f"{self.status} whose JSON cannot be read"
        if self.status < 400:
            return None
        error = document.get("error") if isinstance(document, dict) else None
        shaped = isinstance(error, dict) and set(error) == _ERROR_FIELDS
        return None if shaped else f"{self.status} without the shape of an error"

    @property
    def by_load(self) -> bool:
        """Whether it is the 503 of a server that has too much to do."""
        if self.status != 503 or "retry-after" not in self.headers:
            return False
        if "json" not in self.headers.get("content-type", ""):
            return True
        return json.loads(self.content)["error"]["code"] in LOAD


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A whole request."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def get(path: str, *headers: str) -> bytes:
    """A whole request."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def answer_at(received: bytes | bytearray, start: int, ended: bool) -> Answer | None:
    """The response that begins at a place, None if the rest of it is not there yet.

    ended: whether no more will come. Raises MalformedError, also for a response that is cut off.
    """
    head = received.find(b"\r\n\r\n", start)
    if head < 0:
        if ended or (len(received) > start and not b"HTTP/1.".startswith(received[start:][:7])):
            raise MalformedError(f"no head of a response: {bytes(received[start:][:60])!r}")
        return None
    status = _STATUS.match(received, start)
    if status is None:
        raise MalformedError(f"no status line: {bytes(received[start:][:60])!r}")
    headers, place = {}, status.end()
    while place < head + 2:
        line = _HEADER.match(received, place)
        if line is None:
            raise MalformedError(f"no header: {bytes(received[place:][:60])!r}")
        headers[line[1].decode().lower()] = line[2].decode("latin-1")
        place = line.end()
    found = _content(received, head + 4, int(status[1]), headers, ended)
    return None if found is None else Answer(int(status[1]), headers, *found)


def _content(
    received: bytes | bytearray, start: int, status: int, headers: dict[str, str], ended: bool
) -> tuple[bytes, int] | None:
    """A response's body and where it ends."""
    if status < 200 or status in (204, 304):
        return b"", start
    if headers.get("transfer-encoding") == "chunked":
        found = _unchunked(received, start)
    elif "content-length" in headers:
        end = start + int(headers["content-length"])
        found = (bytes(received[start:end]), end) if len(received) >= end else None
    else:
        found = (bytes(received[start:]), len(received)) if ended else None
    if found is None and ended:
        raise MalformedError(f"a {status} that is cut off")
    return found


def _unchunked(received: bytes | bytearray, start: int) -> tuple[bytes, int] | None:
    content = bytearray()
    while size := _CHUNK.match(received, start):
        end = size.end() + int(size[1], 16)
        if len(received) < end + 2:
            return None
        if received[end : end + 2] != b"\r\n":
            raise MalformedError("a chunk of another length than it says")
        content += received[size.end() : end]
        start = end + 2
        if end == size.end():
            return bytes(content), start
    if len(received) > start + 20:
        raise MalformedError("no length of a chunk")
    return None


@dataclass(slots=True)
class Received:
    """What came on a connection. ended: "closed", "reset" or "open", when waiting was over."""

    content: bytearray = field(default_factory=bytearray)
    size: int = 0
    sent: int = 0
    ended: str = "open"
    seconds: float = 0.0

    def answers(self) -> Iterator[Answer]:
        """The responses in order. Raises MalformedError."""
        if self.size > len(self.content):
            status = _STATUS.match(self.content)
            if status is None:
                raise MalformedError("a long answer without a status line")
            yield Answer(int(status[1]), {}, b"", len(self.content))
            return
        start = 0
        while start < len(self.content):
            answer = answer_at(self.content, start, self.ended != "open")
            if answer is None:
                return
            yield answer
            start = answer.end


@dataclass(slots=True)
class Tally:
    """What has become of the requests of a family."""

    sent: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    server_errors: int = 0
    hangs: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    notes: list[str] = field(default_factory=list)

    def add(
        self, name: str, received: Received, *, may_wait: bool = False, may_break: bool = False
    ) -> list[Answer]:
        """Counts an exchange; may_wait: whether it may be without its end when the client leaves;
        may_break: whether a response may be cut off.

        Returns the responses, but for interim ones.
        """
        self.sent += 1
        self.slowest = max(self.slowest, received.seconds)
        answers: list[Answer] = []
        try:
            for answer in received.answers():
                if answer.status >= 200:
                    answers.append(answer)
        except MalformedError as error:
            if not (may_break and "cut off" in str(error)):
                self.faults[f"{name}: {error}"] += 1
        for answer in answers:
            self.outcomes[str(answer.status)] += 1
            if fault := answer.fault:
                self.faults[f"{name}: {fault}"] += 1
            if answer.status >= 500 and not answer.by_load:
                self.server_errors += 1
                self.faults[f"{name}: {answer.status} {answer.content[:200]!r}"] += 1
        if not answers:
            hangs = received.ended == "open" and not may_wait
            self.outcomes["hang" if hangs else received.ended] += 1
            if hangs:
                self.hangs += 1
                self.faults[f"{name}: no answer within {received.seconds:.0f} s"] += 1
        return answers


async def connected(port: int, receive_bytes: int | None = None) -> socket.socket:
    """A connection to the server of this machine. Raises OSError."""
    connection = socket.socket()
    connection.setblocking(False)
    if receive_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    try:
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    except BaseException:
        connection.close()
        raise
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


async def exchange(
    port: int, parts: Iterable[Part], *, patience: float = 60.0, half_close: bool = True
) -> Received:
    """Sends the parts while it reads, until the server closes the connection or patience ends.

    patience: seconds, after which the client leaves. half_close: close the sending side at the
    end, so that a server that has answered, or cannot, closes the connection.
    """
    received = Received()
    began = time.monotonic()
    try:
        async with asyncio.timeout(patience):
            connection = await connected(port)
    except (OSError, TimeoutError):
        received.ended = "not connected"
        return received
    with connection:
        sending = asyncio.create_task(_send(connection, parts, half_close, received))
        try:
            async with asyncio.timeout(patience):
                await _receive(connection, received)
        except TimeoutError:
            pass
        except OSError:
            received.ended = "reset"
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
    received.seconds = time.monotonic() - began
    return received


async def _receive(connection: socket.socket, received: Received) -> None:
    loop = asyncio.get_running_loop()
    while part := await loop.sock_recv(connection, _SLICE):
        received.size += len(part)
        received.content += part[: max(0, _MOST_KEPT - len(received.content))]
    received.ended = "closed"


async def _send(
    connection: socket.socket, parts: Iterable[Part], half_close: bool, received: Received
) -> None:
    loop = asyncio.get_running_loop()
    try:
        for part in parts:
            if isinstance(part, asyncio.Event):
                await part.wait()
            elif isinstance(part, float):
                await asyncio.sleep(part)
            else:
                view = memoryview(part)
                for start in range(0, len(part), _SLICE):
                    await loop.sock_sendall(connection, view[start : start + _SLICE])
                    received.sent += len(view[start : start + _SLICE])
                    await asyncio.sleep(0)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the server has closed the connection; what it said before is still read
