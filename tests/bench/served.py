"""A server of its own, and a client that costs little beside it."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import httpx

from app.engine.runtime.devices import WantedPrecision


@contextmanager
def serving(folder: Path, precision: WantedPrecision) -> Iterator[str]:
    """A server that is ready; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port)]
    environment = {**os.environ, "CONVLM_LOG_LEVEL": "warning", "CONVLM_BUNDLE": str(folder)}
    environment["CONVLM_PRECISION"] = precision
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            for _ in range(600):
                try:
                    if httpx.get(f"{url}/readyz").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()


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
