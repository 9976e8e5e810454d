"""Whether a server recovers from too much load: `make bench-metastability TEXT=lines.txt`.

Capacity is what clients in a closed loop get. Then single lines arrive at random moments (Poisson),
at twice that rate for a while, and at 0.4 of it after that; each client gives up after some seconds
by closing its connection. A server that works for clients who have left, or first for those who
will leave next, answers nobody in time, and may go on so when the load has fallen: it is
metastable. With `--url` a server that runs is asked, of another version perhaps.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import get_args
from urllib.parse import SplitResult, urlsplit

import aiohttp
import numpy as np
import uvloop

from app.engine.runtime.devices import WantedPrecision
from app.settings import Settings
from model.core.processor import machine
from tests.bench.scoring import introduced, read_lines
from tests.bench.served import post, serving, session

SHARES = (2.0, 0.4)
"""Of the capacity: too much, then little."""
BUCKET_SECONDS = 10.0
LONGEST = 200
"""Characters of a line."""
_WARM_UP_SECONDS = 2.0


@dataclass(slots=True)
class Arrival:
    """A client. moment, sent, ended: seconds after the first load began; planned, and measured.

    outcome: what it got.
    """

    moment: float
    share: float
    sent: float = 0.0
    ended: float = 0.0
    outcome: str = "gave up"


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, help="a text file; its lines of up to 200 characters")
    parser.add_argument("--url", help="of a server that runs; unset, one is started")
    parser.add_argument("--bundle", type=Path, default=Settings().bundle)
    parser.add_argument("--precision", choices=get_args(WantedPrecision), default="auto")
    parser.add_argument("--clients", type=int, default=12, help="of the closed loop")
    parser.add_argument("--capacity-seconds", type=float, default=7.0, help="of the closed loop")
    parser.add_argument("--seconds", type=float, default=40.0, help="of each load")
    parser.add_argument("--patience", type=float, default=5.0, help="seconds until one gives up")
    options = parser.parse_args()
    lines = [line for line in read_lines(options.text) if len(line) <= LONGEST]
    if not lines:
        parser.error(f"{options.text}: there is no line of up to {LONGEST} characters")
    if options.url is None:
        introduced(options.bundle)
        with serving(options.bundle, options.precision) as url:
            uvloop.run(_run(url, lines, options))
    else:
        print(f"{machine()}; server: {options.url}\n")
        uvloop.run(_run(options.url, lines, options))


async def _run(url: str, lines: list[str], options: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    await _capacity(url, lines, options.clients, _WARM_UP_SECONDS)
    most = await _capacity(url, lines, options.clients, options.capacity_seconds)
    print(f"capacity: {most:,.0f} lines/s ({options.clients} clients in a closed loop)\n")
    arrivals = []
    for number, share in enumerate(SHARES):
        gaps = rng.exponential(1 / (share * most), round(2 * share * most * options.seconds) + 10)
        moments = np.cumsum(gaps)
        begin = number * options.seconds
        kept = moments[moments < options.seconds].tolist()
        arrivals += [Arrival(begin + moment, share) for moment in kept]
    texts = [lines[index] for index in rng.choice(len(lines), len(arrivals))]
    await _offer(url, texts, arrivals, options.patience)
    print(markdown(arrivals))


async def _capacity(url: str, lines: list[str], clients: int, seconds: float) -> float:
    """Lines answered in a second, to clients who each send one after the other."""
    answered = 0
    end = time.perf_counter() + seconds

    async def client(http: aiohttp.ClientSession, number: int) -> None:
        nonlocal answered
        place = number
        while time.perf_counter() < end:
            await post(http, _body(lines[place % len(lines)]))
            answered += 1
            place += clients

    async with session(url, clients) as http, asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(client(http, number))
    return answered / seconds


async def _offer(url: str, texts: list[str], arrivals: list[Arrival], patience: float) -> None:
    """Sends each text at its moment, whatever has become of the others."""
    load = _Load(url, patience)
    for text, arrival in zip(texts, arrivals, strict=True):
        wait = arrival.moment - load.now
        if wait > 0:
            await asyncio.sleep(wait)
        load.begin(text, arrival)
    await load.end()


class _Load:
    """Clients that cost little: a busy server and they share the cores.

    One who has its answer leaves its connection to the next.
    """

    def __init__(self, url: str, patience: float) -> None:
        self._address, self._patience = urlsplit(url), patience
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._idle: list[_Connection] = []
        self._open: set[asyncio.Task[None]] = set()

    @property
    def now(self) -> float:
        """Seconds since the load began."""
        return self._loop.time() - self._began

    def begin(self, text: str, arrival: Arrival) -> None:
        """Sends a text."""
        task = self._loop.create_task(self._ask(_request(self._address, text), arrival))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def end(self) -> None:
        """Waits for all answers."""
        while self._open:
            await asyncio.wait(self._open)

    async def _ask(self, request: bytes, arrival: Arrival) -> None:
        arrival.sent = self.now
        connection = self._idle.pop() if self._idle else _Connection()
        try:
            async with asyncio.timeout(self._patience):
                await connection.open(self._address)
                status = await connection.ask(request)
        except TimeoutError:
            connection.close()
        except OSError:
            arrival.outcome = "failed"
        else:
            arrival.outcome = "in time" if status == 200 else "failed"
            self._idle.append(connection)
        arrival.ended = self.now


class _Connection(asyncio.Protocol):
    """A connection on which one request at a time is sent."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[int] | None = None
        self._received = b""

    async def open(self, address: SplitResult) -> None:
        """Connects, unless that is done and the server has not ended it."""
        if self._transport is None or self._transport.is_closing():
            loop = asyncio.get_running_loop()
            host, port = address.hostname or "", address.port or 80
            made = await loop.create_connection(lambda: self, host, port)
            self._transport = made[0]

    async def ask(self, request: bytes) -> int:
        """The status of the answer. Raises OSError."""
        assert self._transport is not None
        self._received = b""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        """Leaves."""
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Takes a part of an answer."""
        self._received += data
        head, found, content = self._received.partition(b"\r\n\r\n")
        if not found or self._answer is None or self._answer.done():
            return
        length = re.search(rb"content-length: (\d+)", head.lower())
        if length is not None and len(content) >= int(length[1]):
            self._answer.set_result(int(head.split(b" ", 2)[1]))

    def connection_lost(self, error: Exception | None) -> None:
        """Ends the wait for an answer."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError())


def _request(address: SplitResult, line: str) -> bytes:
    content = json.dumps(_body(line)).encode()
    head = f"POST /v1/score HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {len(content)}"
    return head.encode() + b"\r\n\r\n" + content


def _body(line: str) -> dict[str, object]:
    return {"input": line, "detail": "totals"}


def markdown(arrivals: list[Arrival]) -> str:
    """A table of arrivals by their moments.

    late: how long after its moment a request was sent, at the 99th percentile: more than a few
    milliseconds mean that the load generator has not kept up.
    """
    names = ("arrivals, s", "load / capacity", "number", "in time", "gave up", "failed")
    rows = [f"| {' | '.join(names)} | p50, s | late, ms |", "| --- |" + " --: |" * 7]
    buckets: dict[tuple[int, float], list[Arrival]] = {}
    for arrival in arrivals:
        place = int(arrival.moment // BUCKET_SECONDS), arrival.share
        buckets.setdefault(place, []).append(arrival)
    for (number, share), own in buckets.items():
        shares = [
            f"{np.mean([a.outcome == outcome for a in own]):.1%}"
            for outcome in ("in time", "gave up", "failed")
        ]
        served = [a.ended - a.sent for a in own if a.outcome == "in time"]
        middle = f"{np.median(served):.2f}" if served else "-"
        late = 1e3 * np.quantile([a.sent - a.moment for a in own], 0.99)
        first = number * BUCKET_SECONDS
        rows.append(
            f"| {first:.0f} to {first + BUCKET_SECONDS:.0f} | {share:.1f} | {len(own):,} | "
            f"{' | '.join(shares)} | {middle} | {late:.0f} |"
        )
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
