"""A server of its own, and a client that costs little beside it."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import httpx

from app.engine.runtime.devices import WantedPrecision


@contextmanager
def serving(folder: Path, precision: WantedPrecision) -> Iterator[str]:
    """A server that is ready; its address."""
    settings = {"CONVLM_BUNDLE": str(folder), "CONVLM_PRECISION": precision}
    with running(settings) as server:
        yield server.url


@dataclass(frozen=True, slots=True)
class Running:
    """A server's address and process."""

    url: str
    process: subprocess.Popen[bytes]

    @property
    def cpu_seconds(self) -> float:
        """Of all its threads, since the start of the process."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running(
    settings: dict[str, str], tree: Path | None = None, launch: Sequence[str] = ("app.cli",)
) -> Iterator[Running]:
    """A server that is ready, with variables of the environment.

    tree: a checkout of another version, whose code it runs. launch: a module, and arguments before
    `serve`. Raises RuntimeError if it is not ready within a minute.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", *launch, "serve", "--port", str(port)]
    environment = {**os.environ, "CONVLM_LOG_LEVEL": "warning", **settings}
    if tree is not None:
        environment["PYTHONPATH"] = str(tree.resolve())
    with subprocess.Popen(command, env=environment, cwd=tree, stdout=subprocess.DEVNULL) as process:
        server = Running(f"http://127.0.0.1:{port}", process)
        try:
            _wait_until_ready(server)
            yield server
        finally:
            process.terminate()


def _wait_until_ready(server: Running) -> None:
    for _ in range(600):
        with suppress(httpx.TransportError):
            if httpx.get(f"{server.url}/readyz").status_code == 200:
                return
        if server.process.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"the server is not ready; its status: {server.process.poll()}")


def busy_seconds() -> float:
    """Processor time that all processes of the machine have taken, and that was taken from it."""
    counts = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _, _, irq, softirq, steal = map(int, counts)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def closed_loop(url: str, bodies: list[dict[str, object]], clients: int) -> float:
    """Seconds until all bodies are scored by clients who each send one request after the other."""

    async def run() -> float:
        waiting = list(bodies)

        async def client(http: aiohttp.ClientSession) -> None:
            while waiting:
                await post(http, waiting.pop())

        async with session(url, clients) as http:
            began = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for _ in range(clients):
                    group.create_task(client(http))
            return time.perf_counter() - began

    return asyncio.run(run())


def session(url: str, connections: int) -> aiohttp.ClientSession:
    """A client that opens so many connections at most."""
    connector = aiohttp.TCPConnector(limit=connections)
    timeout = aiohttp.ClientTimeout(total=600)
    return aiohttp.ClientSession(url, connector=connector, timeout=timeout)


async def post(http: aiohttp.ClientSession, body: dict[str, object]) -> float:
    """Scores one body; the seconds it took."""
    began = time.perf_counter()
    async with http.post("/v1/score", json=body) as answer:
        await answer.read()
        answer.raise_for_status()
    return time.perf_counter() - began


def metrics(url: str) -> dict[str, float]:
    """The server's counters by name and labels."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    found = (re.fullmatch(r"(\S+) (\S+)", line) for line in lines if not line.startswith("#"))
    return {match[1]: float(match[2]) for match in found if match}


def resident(pid: int) -> float:
    """Megabytes (10^6 bytes) that a process holds."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024 / 1e6
