"""Normal clients and probes in a process of their own, so that an attack costs them no time here.

The process reads from its input what it needs as one line of JSON, works until its input ends, and
writes what it saw as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from tests import texts
from tests.bench.hostile.wire import (
    Answer,
    MalformedError,
    answer_at,
    connected,
    get,
    post,
)

_PROBE_SECONDS = 0.02
_NEW_EVERY = 5
_KEPT = 50
"""Connections for probes: while the server stops for a second no new one has to be accepted."""
_TICK_SECONDS = 0.005
_PATIENCE_SECONDS = 60.0
_PAUSE_SECONDS = 0.02
_SCORERS = 2
_SHORT = texts.ALICE.replace("\n", " ").split(", ")
_BODIES: list[dict[str, Any]] = [{"input": text.strip()} for text in _SHORT[:8]]
_STREAM = {
    "prompt": "The history of the town",
    "max_tokens": 20,
    "seed": 8,
    "stream": True,
    "ignore_eos": True,
}


@dataclass(slots=True)
class Seen:
    """What probes and normal clients saw; milliseconds."""

    probes: list[float] = field(default_factory=list)
    new_probes: list[float] = field(default_factory=list)
    failed_probes: int = 0
    answers: int = 0
    streams: int = 0
    refused: int = 0
    reconnected: int = 0
    failures: list[str] = field(default_factory=list)
    worst_score: float = 0.0
    worst_stream: float = 0.0
    lateness: float = 0.0
    """The longest gap of the watching process, which is part of what it measures."""
    gap: float = 0.0
    """The longest gap of a process that does nothing but tick: the machine's part."""


class _Client:
    """A connection that is kept, with one request at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None

    async def ask(self, request: bytes, seen: Seen) -> Answer:
        """The answer. Raises OSError, MalformedError.

        A kept connection that is closed before the answer's first byte is opened again once, as
        HTTP clients do.
        """
        kept = self._socket is not None
        try:
            return await self._ask(request)
        except OSError:
            self.close()
            if not kept:
                raise
            seen.reconnected += 1
            return await self._ask(request)

    def close(self) -> None:
        """Closes the connection; the next request opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def _ask(self, request: bytes) -> Answer:
        loop = asyncio.get_running_loop()
        if self._socket is None:
            self._socket = await connected(self._port)
        await loop.sock_sendall(self._socket, request)
        received = bytearray()
        while True:
            part = await loop.sock_recv(self._socket, 1 << 16)
            if not part and not received:
                raise ConnectionResetError("closed without an answer")
            received += part
            answer = answer_at(received, 0, not part)
            if answer is not None:
                if answer.headers.get("connection") == "close" or not part:
                    self.close()
                return answer


async def known(port: int) -> tuple[list[Any], str]:
    """The right answers of an idle server: `data` of each body, and the stream's text."""
    client, seen = _Client(port), Seen()
    scores = [await client.ask(_score(body), seen) for body in _BODIES]
    stream = await client.ask(post("/v1/completions", json.dumps(_STREAM).encode()), seen)
    client.close()
    assert {answer.status for answer in (*scores, stream)} == {200}
    return [json.loads(answer.content)["data"] for answer in scores], _text(stream.content)


def _score(body: dict[str, Any]) -> bytes:
    return post("/v1/score", json.dumps(body).encode())


def _text(content: bytes) -> str:
    """A stream's text; of one that ends with an error the error."""
    lines = [line[6:] for line in content.splitlines() if line.startswith(b"data: {")]
    events = [json.loads(line) for line in lines]
    errors = [json.dumps(event) for event in events if "error" in event]
    return errors[0] if errors else "".join(event["choices"][0]["text"] for event in events)


@contextmanager
def watching(port: int, right: tuple[list[Any], str]) -> Iterator[Seen]:
    """Watches until the block ends; the figures are there afterwards."""
    seen = Seen()
    module = [sys.executable, "-m", "tests.bench.hostile.watch"]
    pipe = subprocess.PIPE
    with (
        subprocess.Popen([*module, "tick"], stdin=pipe, stdout=pipe) as ticker,
        subprocess.Popen([*module, "watch"], stdin=pipe, stdout=pipe) as watcher,
    ):
        first = json.dumps({"port": port, "right": right}).encode() + b"\n"
        assert watcher.stdin is not None
        watcher.stdin.write(first)
        watcher.stdin.flush()
        assert watcher.stdout is not None
        watcher.stdout.readline()
        try:
            yield seen
        finally:
            for name, value in json.loads(watcher.communicate()[0]).items():
                setattr(seen, name, value)
            seen.gap = float(ticker.communicate()[0])


async def _tick(gaps: list[float]) -> None:
    while True:
        began = time.perf_counter()
        await asyncio.sleep(_TICK_SECONDS)
        gaps[0] = max(gaps[0], 1e3 * (time.perf_counter() - began - _TICK_SECONDS))


async def _probe(client: _Client, seen: Seen, found: list[float], *headers: str) -> None:
    """One probe; adds its milliseconds."""
    began = time.perf_counter()
    right = False
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            right = (await client.ask(get("/livez", *headers), seen)).status == 200
    except (OSError, MalformedError, TimeoutError):
        client.close()
    seen.failed_probes += not right
    found.append(1e3 * (time.perf_counter() - began))


async def _probes(port: int, seen: Seen, over: asyncio.Event) -> None:
    """Probes at fixed moments, answered or not: a stopped server is seen by all that are due.

    Each is on a kept connection that no other waits on; each fifth time there is one more on a new
    connection, whose answer waits for the server to accept it, too.
    """
    idle = deque(_Client(port) for _ in range(_KEPT))
    for client in idle:
        await _probe(client, seen, [])
    print("ready", flush=True)

    async def kept() -> None:
        client = idle.popleft() if idle else _Client(port)
        await _probe(client, seen, seen.probes)
        idle.append(client)

    async with asyncio.TaskGroup() as group:
        number = 0
        while not over.is_set():
            group.create_task(kept())
            if number % _NEW_EVERY == 0:
                new = _probe(_Client(port), seen, seen.new_probes, "Connection: close")
                group.create_task(new)
            number += 1
            began = time.perf_counter()
            await asyncio.sleep(_PROBE_SECONDS)
            late = 1e3 * (time.perf_counter() - began - _PROBE_SECONDS)
            seen.lateness = max(seen.lateness, late)
    for client in idle:
        client.close()


async def _judged(client: _Client, request: bytes, seen: Seen, wanted: Any) -> float:
    """Asks, and notes what is wrong with the answer; milliseconds that it took."""
    began = time.perf_counter()
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            answer = await client.ask(request, seen)
    except (OSError, MalformedError, TimeoutError) as error:
        client.close()
        seen.failures.append(f"{type(error).__name__} {error}")
        await asyncio.sleep(0.5)
    else:
        if answer.by_load:
            seen.refused += 1
            await asyncio.sleep(0.5)
        elif answer.status != 200:
            seen.failures.append(f"{answer.status} {answer.content[:200]!r}")
        elif isinstance(wanted, str):
            seen.streams += 1
            if (text := _text(answer.content)) != wanted:
                seen.failures.append(f"a stream of other text: {text[:200]!r}")
        else:
            seen.answers += 1
            if json.loads(answer.content)["data"] != wanted:
                seen.failures.append("a score of other bits")
    return 1e3 * (time.perf_counter() - began)


async def _score_on(
    port: int, seen: Seen, wanted: list[Any], first: int, over: asyncio.Event
) -> None:
    client = _Client(port)
    requests = [_score(body) for body in _BODIES]
    number = first
    while not over.is_set():
        number = (number + 1) % len(requests)
        took = await _judged(client, requests[number], seen, wanted[number])
        seen.worst_score = max(seen.worst_score, took)
        await asyncio.sleep(_PAUSE_SECONDS)


async def _stream_on(port: int, seen: Seen, wanted: str, over: asyncio.Event) -> None:
    client = _Client(port)
    request = post("/v1/completions", json.dumps(_STREAM).encode())
    while not over.is_set():
        took = await _judged(client, request, seen, wanted)
        seen.worst_stream = max(seen.worst_stream, took)
        await asyncio.sleep(_PAUSE_SECONDS)


async def _watch() -> None:
    loop = asyncio.get_running_loop()
    given = json.loads(await loop.run_in_executor(None, sys.stdin.readline))
    port, (scores, text), seen, over = given["port"], given["right"], Seen(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for number in range(_SCORERS):
            group.create_task(_score_on(port, seen, scores, number, over))
        group.create_task(_stream_on(port, seen, text, over))
        group.create_task(_probes(port, seen, over))
        await loop.run_in_executor(None, sys.stdin.read)
        over.set()  # what is under way is waited for, and counts
    print(json.dumps(asdict(seen)))


async def _only_tick() -> None:
    gaps = [0.0]
    ticking = asyncio.create_task(_tick(gaps))
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    ticking.cancel()
    print(gaps[0])


if __name__ == "__main__":
    if sys.argv[1] == "watch":
        with contextlib.suppress(OSError):  # who waits for a processor measures itself
            os.setpriority(os.PRIO_PROCESS, 0, -10)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(_watch() if sys.argv[1] == "watch" else _only_tick())
