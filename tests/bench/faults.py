"""Faults of the engine under load: `make bench-faults`.

Each fault has a server process of its own (`faulty_server`), which is started again when it ends,
as a supervisor would. Clients score, stream and send lines in bulk all the while; every answer is
compared with that of a server without faults. A few seconds later others send texts that have the
fault. The table says who failed, and when `/readyz` told.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from app.settings import Settings
from model.core import bundle
from model.core.processor import machine
from tests.bench.faulty_server import FAULTS, poisoned
from tests.bench.served import session

HANG_SECONDS = 8
MAX_BATCH_SECONDS = 3.0
"""A hang of 8 s is longer than this, and shorter than the time after which a server gives up."""
FOR_ALL = ("endless", "always")
"""Faults that concern all who have asked: the server ends."""
SCORES, STREAMS, LINES = 40, 6, 60
"""Bodies that clients send in turn, choices that are streamed, lines of a bulk request."""
_POLL_SECONDS = 0.05
_FAULT_SECONDS = 2.0
"""From the beginning of the load to the first text with the fault."""


@dataclass
class Outcome:
    """What clients got. Moments are of `time.monotonic`, 0 if it never came to it."""

    requests: int = 0
    refused: int = 0
    """Those that were told at once that the server is not ready, or found none."""
    failed: int = 0
    differing: int = 0
    concerned: int = 0
    """Texts with the fault, and how many of them failed."""
    concerned_failed: int = 0
    fault: float = 0.0
    told: float = 0.0
    recovered: float = 0.0
    ended: list[int] = field(default_factory=list)
    """Statuses with which the process ended."""


Answer = Callable[[aiohttp.ClientSession], Awaitable[Any]]
"""Asks; raises `ConnectionError` or `aiohttp.ClientError`, `_RefusedError` or `_FailedError`."""


class _RefusedError(Exception):
    """The server is not ready."""


class _FailedError(Exception):
    """Any other error."""


class Supervisor:
    """A server process with a fault, started again when it has ended."""

    def __init__(self, folder: Path, fault: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        module = ["tests.bench.faulty_server", f"{fault}:{HANG_SECONDS}"] if fault else ["app.cli"]
        self._command = [sys.executable, "-m", *module, "serve", "--port", str(port)]
        self._environment = {
            **os.environ,
            "CONVLM_BUNDLE": str(folder),
            "CONVLM_LOG_LEVEL": "error",
            "CONVLM_MAX_BATCH_SECONDS": str(MAX_BATCH_SECONDS),
        }
        self._process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        quiet = subprocess.DEVNULL
        return subprocess.Popen(self._command, env=self._environment, stdout=quiet, stderr=quiet)

    def poll(self) -> int | None:
        """Starts the process again if it has ended; its status then."""
        status = self._process.poll()
        if status is not None:
            self._process = self._started()
        return status

    def close(self) -> None:
        """Ends the process."""
        self._process.terminate()
        self._process.wait()


@contextmanager
def supervised(folder: Path, fault: str) -> Iterator[Supervisor]:
    """A server process until the block ends."""
    made = Supervisor(folder, fault)
    try:
        yield made
    finally:
        made.close()


def work(vocabulary: int) -> dict[str, Answer]:
    """What clients ask, by name: scores, streams and lines in bulk. No text has the fault."""
    rng = np.random.default_rng(0)

    def ids() -> list[int]:
        count = int(rng.choice([8, 40, 300]))
        return [int(token) for token in rng.integers(3, vocabulary // 2, count)]

    asked: dict[str, Answer] = {}
    for number in range(SCORES):
        asked[f"score {number}"] = _score({"input": ids()})
    for number in range(STREAMS):
        asked[f"stream {number}"] = _stream(number)
    lines = b"".join(json.dumps({"input": ids()}).encode() + b"\n" for _ in range(LINES))
    asked["bulk"] = _bulk(lines)
    return asked


def _score(body: dict[str, Any]) -> Answer:
    async def ask(http: aiohttp.ClientSession) -> Any:
        async with http.post("/v1/score", json=body) as answer:
            return _checked(answer.status, await answer.json())["data"]

    return ask


def _stream(seed: int) -> Answer:
    body = {"prompt": "It was", "max_tokens": 60, "seed": seed, "top_k": 50, "ignore_eos": True}

    async def ask(http: aiohttp.ClientSession) -> Any:
        async with http.post("/v1/completions", json={**body, "stream": True}) as answer:
            if answer.status != 200:
                _checked(answer.status, await answer.json())
            lines = [line async for line in answer.content if line.startswith(b"data: {")]
        parts = [json.loads(line.removeprefix(b"data: ")) for line in lines]
        if any("error" in part for part in parts):
            raise _FailedError
        return "".join(part["choices"][0]["text"] for part in parts if part["choices"])

    return ask


def _bulk(lines: bytes) -> Answer:
    async def ask(http: aiohttp.ClientSession) -> Any:
        async with http.post("/v1/score/stream", data=lines) as answer:
            if answer.status != 200:
                _checked(answer.status, await answer.json())
            found = [json.loads(line) async for line in answer.content]
        if any("error" in line for line in found) or len(found) != LINES + 1:
            raise _FailedError
        return [line["data"] for line in found[:-1]]

    return ask


def _checked(status: int, answer: dict[str, Any]) -> dict[str, Any]:
    if status == 503 and answer["error"]["code"] == "not_ready":
        raise _RefusedError
    if status != 200:
        raise _FailedError
    return answer


async def answers(url: str, asked: dict[str, Answer]) -> dict[str, Any]:
    """What a server without faults answers."""
    async with session(url, 1) as http:
        await _until_ready(http)
        return {name: await ask(http) for name, ask in asked.items()}


async def _ready(http: aiohttp.ClientSession) -> bool | None:
    """Whether a server is ready; None if it does not answer."""
    try:
        async with http.get("/readyz", timeout=aiohttp.ClientTimeout(total=1)) as answer:
            return answer.status == 200
    except (aiohttp.ClientError, TimeoutError, OSError):
        return None


async def _until_ready(http: aiohttp.ClientSession) -> None:
    while not await _ready(http):
        await asyncio.sleep(_POLL_SECONDS)


class Trial:
    """Clients of a server with one fault, for some seconds."""

    def __init__(
        self,
        server: Supervisor,
        fault: str,
        asked: dict[str, Answer],
        expected: dict[str, Any],
        bad: list[int],
    ) -> None:
        self._server, self._fault = server, fault
        self._asked, self._expected = asked, expected
        self._bad = _score({"input": bad})
        self._stopped = False
        self.outcome = Outcome()

    async def run(self, seconds: float) -> Outcome:
        """What all clients got."""
        async with session(self._server.url, 100) as http:
            await _until_ready(http)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch(http))
                group.create_task(self._poison(http))
                names = list(self._asked)
                for turn in range(4):
                    group.create_task(self._ask(http, names[turn:SCORES:4]))
                for name in names[SCORES:]:
                    group.create_task(self._ask(http, [name]))
                await asyncio.sleep(seconds)
                self._stopped = True
        return self.outcome

    async def _ask(self, http: aiohttp.ClientSession, names: list[str]) -> None:
        turn = 0
        while not self._stopped:
            name = names[turn % len(names)]
            turn += 1
            self.outcome.requests += 1
            try:
                answer = await self._asked[name](http)
            except (_RefusedError, aiohttp.ClientConnectorError):
                self.outcome.refused += 1
                await asyncio.sleep(_POLL_SECONDS)
            except (_FailedError, aiohttp.ClientError, OSError):
                self.outcome.failed += 1
                await asyncio.sleep(_POLL_SECONDS)
            else:
                self.outcome.differing += answer != self._expected[name]

    async def _poison(self, http: aiohttp.ClientSession) -> None:
        """Sends texts with the fault: many, or one if the first does all the harm."""
        await asyncio.sleep(_FAULT_SECONDS)
        self.outcome.fault = time.monotonic()
        while not self._stopped:
            self.outcome.concerned += 1
            try:
                await self._bad(http)
            except (_RefusedError, _FailedError, aiohttp.ClientError, OSError):
                self.outcome.concerned_failed += 1
            if self._fault in ("hang", *FOR_ALL):
                return
            await asyncio.sleep(0.1)

    async def _watch(self, http: aiohttp.ClientSession) -> None:
        """Notes when `/readyz` tells of the fault, and when it is over."""
        while not self._stopped:
            status = self._server.poll()
            if status is not None:
                self.outcome.ended.append(status)
            ready = await _ready(http)
            if self.outcome.fault:
                if not ready and not self.outcome.told:
                    self.outcome.told = time.monotonic()
                if ready and self.outcome.told and not self.outcome.recovered:
                    self.outcome.recovered = time.monotonic()
            await asyncio.sleep(_POLL_SECONDS)


def row(fault: str, outcome: Outcome) -> str:
    """A row of the table."""

    def since(moment: float) -> str:
        return f"{moment - outcome.fault:.1f}" if moment else "-"

    cells = [
        fault,
        f"{outcome.requests:,}",
        f"{outcome.concerned_failed} of {outcome.concerned}",
        f"{outcome.failed} (all are concerned)" if fault in FOR_ALL else str(outcome.failed),
        str(outcome.refused),
        str(outcome.differing),
        since(outcome.told),
        since(outcome.recovered),
        ", ".join(map(str, outcome.ended)) or "-",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Settings().bundle)
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=FAULTS)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each fault's load")
    options = parser.parse_args()
    vocabulary = bundle.load(options.bundle).config.model.vocabulary
    asked = work(vocabulary)
    with supervised(options.bundle, "") as server:
        expected = asyncio.run(answers(server.url, asked))
    print(f"{machine()}\n")
    names = "fault|requests|with the fault, failed|others failed|refused as not ready|differing"
    heads = [*names.split("|"), "told, s", "ready again, s", "exit status"]
    print(f"| {' | '.join(heads)} |\n| --- |{' --: |' * (len(heads) - 1)}")
    for fault in options.faults:
        with supervised(options.bundle, fault) as server:
            trial = Trial(server, fault, asked, expected, poisoned(vocabulary))
            print(row(fault, asyncio.run(trial.run(options.seconds))), flush=True)


if __name__ == "__main__":
    main()
