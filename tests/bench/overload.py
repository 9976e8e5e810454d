"""What a server does with too much load: `make bench-overload TEXT=lines.txt`.

Capacity is what clients in a closed loop get. Then lines arrive one a request at random moments
(Poisson), at 1, 2, 3, 5 and 10 times that rate, whether or not the earlier ones have been answered.
A part of the clients gives up after some seconds by closing its connection; some name a deadline in
the header `x-request-timeout-ms` and wait for their answers, as the others do. A server that works
for clients who have left, or that accepts more than it can answer in time, answers nobody in time,
and may go on so when the load has ended.

After each load, single requests show when the server is normal again. After a shorter one of the
same rate, a request that was refused is sent again, alone, until it is accepted: that is when
`Retry-After` should have said. One such request is a line; the other is so long that it takes the
server some seconds. With `--url` a server that runs is asked; with `--tree` one of another
checkout is started.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import resource
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import get_args
from urllib.parse import SplitResult, urlsplit

import numpy as np
import numpy.typing as npt
import uvloop

from app.engine.runtime.devices import WantedPrecision
from app.settings import Settings
from model.core.processor import machine
from tests.bench.open_loop import (
    Answer,
    Arrival,
    Connection,
    Load,
    ask,
    closed_loop,
    poisson,
    request,
)
from tests.bench.overload_results import Level, Retry, draw, markdown, normal_from, outcomes
from tests.bench.scoring import CLIENTS, introduced, read_lines
from tests.bench.served import Running, busy_seconds, running

_WARM_UP_SECONDS = 2.0
_PROBE_SECONDS = 0.1
_IDLE_PROBES = 21
_RECOVERY_SECONDS = 120.0
_RETRY_SECONDS = 150.0
"""Until one stops to wait for a request to be accepted; no Retry-After is above 120."""
_LEAST_PAUSE_SECONDS, _PART_OF_RETRY = 0.15, 20
"""Between two tries: a part of what Retry-After names, so that they cost the server little."""


def main() -> None:
    """Prints Markdown tables, and draws and writes if asked."""
    options = _parser().parse_args()
    _allow_connections()
    lines = [line for line in read_lines(options.text) if len(line) <= options.longest]
    loaded = introduced(options.bundle)
    tokens = statistics.fmean(len(encoded.ids) for encoded in loaded.tokenizer.encode_many(lines))
    print(f"{len(lines):,} lines of {tokens:.1f} tokens on average\n", flush=True)
    if options.url is None:
        settings = {
            "CONVLM_BUNDLE": str(options.bundle.resolve()),
            "CONVLM_PRECISION": options.precision,
        }
        with running(settings, options.tree) as server:
            levels = uvloop.run(_Bench(server.url, server, lines, tokens, options).run())
    else:
        levels = uvloop.run(_Bench(options.url, None, lines, tokens, options).run())
    print(markdown(levels))
    if options.json:
        record = {"machine": machine(), "levels": [asdict(level) for level in levels]}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    if options.png:
        before = json.loads(options.before.read_text())["levels"] if options.before else []
        draw(levels, [Level(**{**level, "retries": []}) for level in before], options.png)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, help="a text file; its lines that are not too long")
    parser.add_argument("--url", help="of a server that runs; unset, one is started")
    parser.add_argument("--tree", type=Path, help="checkout whose server is started; default: this")
    parser.add_argument("--bundle", type=Path, default=Settings().bundle)
    parser.add_argument("--precision", choices=get_args(WantedPrecision), default="auto")
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 2.0, 3.0, 5.0, 10.0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load")
    parser.add_argument("--capacity-seconds", type=float, default=8.0, help="of the closed loop")
    parser.add_argument("--clients", type=int, default=CLIENTS, help="of the closed loop")
    parser.add_argument("--longest", type=int, default=1000, help="characters of a line")
    parser.add_argument("--impatient", type=float, default=0.5, help="share that gives up")
    parser.add_argument("--patience", type=float, default=5.0, help="seconds until those give up")
    parser.add_argument("--deadlines", type=float, default=0.1, help="share that names a deadline")
    parser.add_argument("--deadline", type=float, default=4.0, help="seconds that those name")
    parser.add_argument(
        "--retry-load", type=float, default=20.0, help="seconds of the load before a retry"
    )
    parser.add_argument(
        "--large", type=float, default=5.0, help="size of the long request, in seconds of work"
    )
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--png", type=Path, help="where to draw them")
    parser.add_argument("--before", type=Path, help="results to draw beside them")
    return parser


def _allow_connections() -> None:
    """Each client has a connection, and a server that is started has the same limit."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(f"at most {most:,} open connections (ulimit -n)")


class _Bench:
    """A server, and what it is asked. server: None if another process started it."""

    def __init__(
        self,
        url: str,
        server: Running | None,
        lines: list[str],
        tokens: float,
        options: argparse.Namespace,
    ) -> None:
        self._address: SplitResult = urlsplit(url)
        self._server, self._options = server, options
        self._lines, self._tokens = lines, tokens
        deadline = f"X-Request-Timeout-Ms: {1e3 * options.deadline:.0f}"
        self._requests = [self._request(line) for line in lines]
        self._urgent = [self._request(line, deadline) for line in lines]
        self._rng = np.random.default_rng(0)

    def _request(self, text: str, *headers: str) -> bytes:
        body: dict[str, object] = {"input": text, "detail": "totals"}
        return request(self._address, "/v1/score", body, *headers)

    async def run(self) -> list[Level]:
        """All levels, each after a measurement of the capacity."""
        await self._capacity(_WARM_UP_SECONDS)
        levels = []
        for share in self._options.shares:
            levels.append(await self._level(share))
            print(f"{share:g} times the capacity: {levels[-1].statuses}\n", flush=True)
        return levels

    async def _capacity(self, seconds: float) -> float:
        order = itertools.cycle(self._rng.permutation(len(self._requests)).tolist())
        answered, took = await closed_loop(
            self._address, lambda: self._requests[next(order)], self._options.clients, seconds
        )
        return answered / took

    async def _level(self, share: float) -> Level:
        options = self._options
        capacity = await self._capacity(options.capacity_seconds)
        probe = self._requests[0]
        idle = await self._idle_seconds(probe)
        gc.collect()
        load, arrivals = Load(self._address), self._arrivals(share * capacity, options.seconds)
        before = self._cpu_seconds()
        await load.offer(arrivals, options.seconds)
        generator, server, busy = (self._cpu_seconds() - before) / options.seconds
        settling = asyncio.create_task(load.settle())
        normal = await self._recovery(probe, idle)
        await settling
        retries = []
        if share > 1:
            retries.append(await self._retry(share * capacity, None))
        if share > 1 and options.large:
            long = self._long(options.large * capacity)
            retries.append(await self._retry(share * capacity, long))
        return Level(
            share=share,
            capacity=capacity,
            **outcomes(arrivals, options.seconds),
            idle_seconds=idle,
            normal_seconds=normal,
            generator_cores=float(generator),
            server_cores=float(server) if self._server else None,
            machine_cores=float(busy),
            retries=retries,
        )

    def _arrivals(self, rate: float, seconds: float) -> list[Arrival]:
        moments = poisson(self._rng, rate, seconds)
        chosen = self._rng.choice(len(self._requests), len(moments)).tolist()
        kinds = self._rng.random(len(moments)).tolist()
        return [
            self._arrival(moment, i, kind)
            for moment, i, kind in zip(moments, chosen, kinds, strict=True)
        ]

    def _arrival(self, moment: float, line: int, kind: float) -> Arrival:
        """kind: from 0 to 1; impatient clients first, then those with a deadline."""
        options = self._options
        if kind < options.impatient:
            return Arrival(moment, self._requests[line], options.patience)
        if kind < options.impatient + options.deadlines:
            return Arrival(moment, self._urgent[line])
        return Arrival(moment, self._requests[line])

    def _long(self, lines: float) -> bytes:
        """A text as long as so many lines."""
        chosen = self._rng.choice(len(self._lines), max(1, round(lines)))
        return self._request(" ".join(self._lines[i] for i in chosen))

    def _cpu_seconds(self) -> npt.NDArray[np.float64]:
        """Processor time of the generator, the server and the machine."""
        server = self._server.cpu_seconds if self._server else 0.0
        return np.array([time.process_time(), server, busy_seconds()])

    async def _idle_seconds(self, probe: bytes) -> float:
        """The median time of a request to the idle server."""
        seconds = []
        for _ in range(_IDLE_PROBES):
            await asyncio.sleep(_PROBE_SECONDS)
            began = time.perf_counter()
            await self._ask_once(probe)
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds)

    async def _ask_once(self, probe: bytes) -> Answer | None:
        connection = Connection(self._address)
        answer = await ask(connection, probe)
        connection.close()
        return answer

    async def _recovery(self, probe: bytes, idle: float) -> float | None:
        """Seconds until the server is normal; None if it is not for _RECOVERY_SECONDS."""
        began = time.perf_counter()
        sent: list[float] = []
        took: list[float | None] = []

        async def send(number: int) -> None:
            answer = await self._ask_once(probe)
            right = answer is not None and answer.status == 200
            took[number] = time.perf_counter() - began - sent[number] if right else float("inf")

        async with asyncio.TaskGroup() as group:
            while time.perf_counter() - began < _RECOVERY_SECONDS:
                sent.append(time.perf_counter() - began)
                took.append(None)
                group.create_task(send(len(sent) - 1))
                await asyncio.sleep(_PROBE_SECONDS)
                first = normal_from(took, 2 * idle)
                if first is not None:
                    return sent[first]
        return None

    async def _retry(self, rate: float, long: bytes | None) -> Retry:
        """When a request is accepted that is refused as a load ends: `long`, or one of the load."""
        load, seconds = Load(self._address), self._options.retry_load
        arrivals = self._arrivals(rate, seconds)
        await load.offer(arrivals, seconds)
        settling = asyncio.create_task(load.settle())
        if long is not None:
            retry = await self._repeat("long text", Arrival(load.now, long), load)
        else:
            refused = (a for a in reversed(arrivals) if a.retry_after is not None)
            retry = await self._repeat("line", next(refused, arrivals[-1]), load)
        await settling
        return retry

    async def _repeat(self, name: str, refused: Arrival, load: Load) -> Retry:
        """Sends a request again until it is accepted; first to be refused, if it has not been."""
        if not refused.outcome:
            answer = await self._ask_once(refused.request)
            refused.ended = load.now
            refused.outcome = str(answer.status) if answer else "no answer"
            refused.retry_after = answer.retry_after if answer else None
        if refused.retry_after is None:
            return Retry(name, refused.outcome, None, None)
        pause = max(_LEAST_PAUSE_SECONDS, refused.retry_after / _PART_OF_RETRY)
        while (sent := load.now - refused.ended) < _RETRY_SECONDS:
            answer = await self._ask_once(refused.request)
            if answer is not None and answer.status == 200:
                return Retry(name, refused.outcome, refused.retry_after, sent)
            await asyncio.sleep(pause)
        return Retry(name, refused.outcome, refused.retry_after, None)


if __name__ == "__main__":
    main()
