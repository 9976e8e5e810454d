"""The servers that are compared, and how each is started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.bench.peers import environments

Variables = dict[str, str]
_READY_SECONDS = 120
_STOP_SECONDS = 20
_WAKE_SECONDS = 0.5
"""Timers that ran out meanwhile have their turn."""
_VARIABLES = {
    "PYTHONPATH": str(environments.ROOT),
    "RAY_USAGE_STATS_ENABLED": "0",  # no reports over the network
    "BENTOML_DO_NOT_TRACK": "True",
}


@dataclass(frozen=True, slots=True)
class Peer:
    """A generic server.

    environment: that of its requirements; None for convlm's own. batches: whether it joins
    requests. lists: whether a request is a list of texts, and so is its answer.
    """

    name: str
    arguments: tuple[str, ...]
    environment: str | None
    batches: bool = True
    lists: bool = False

    def command(self, port: int) -> list[str]:
        """The command that serves."""
        interpreter = environments.python(self.environment) if self.environment else sys.executable
        return [str(interpreter), "-m", *(part.format(port=port) for part in self.arguments)]


PEERS = (
    Peer("FastAPI", ("tests.bench.peers.with_fastapi",), None, batches=False),
    Peer("LitServe", ("tests.bench.peers.with_litserve",), "litserve"),
    Peer("mosec", ("tests.bench.peers.with_mosec",), "mosec"),
    Peer("Ray Serve", ("tests.bench.peers.with_ray",), "ray"),
    Peer(
        "BentoML",
        (
            *("bentoml", "serve", "tests.bench.peers.with_bentoml:ScoreService"),
            *("--host", "127.0.0.1", "--port", "{port}"),
        ),
        "bentoml",
        lists=True,
    ),
)


def convlm(bundle: Path, port: int, precision: str, threads: int) -> tuple[list[str], Variables]:
    """The command and the environment of convlm's own server."""
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port)]
    settings = {"bundle": bundle, "precision": precision, "threads": threads}
    variables = {f"CONVLM_{name.upper()}": str(value) for name, value in settings.items()}
    return command, {**variables, "CONVLM_LOG_LEVEL": "warning"}


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Processes:
    """A server's processes: a session of their own."""

    leader: int

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Lets them run for as long as they are asked; idle ones would take a few per cent each."""
        self.signal(signal.SIGCONT)
        time.sleep(_WAKE_SECONDS)
        try:
            yield
        finally:
            self.signal(signal.SIGSTOP)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to all of them."""
        for entry in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it has ended
                fields = entry.read_text().rpartition(")")[2].split()
                if int(fields[3]) == self.leader:
                    os.kill(int(entry.parent.name), number)


@contextmanager
def running(command: list[str], variables: Variables, url: str, body: str) -> Iterator[Processes]:
    """A server from when it answers. Raises RuntimeError if it never does."""
    process = subprocess.Popen(
        command,
        cwd=environments.ROOT,
        env={**os.environ, **_VARIABLES, **variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    processes = Processes(process.pid)
    try:
        if not _answers(process, url, body):
            raise RuntimeError(f"{' '.join(command)} does not answer")
        processes.signal(signal.SIGSTOP)
        yield processes
    finally:
        processes.signal(signal.SIGCONT)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
        processes.signal(signal.SIGKILL)
        process.wait()


def _answers(process: subprocess.Popen[bytes], url: str, body: str) -> bool:
    headers = {"Content-Type": "application/json"}
    end = time.monotonic() + _READY_SECONDS
    while process.poll() is None and time.monotonic() < end:
        with suppress(httpx.TransportError):
            if httpx.post(url, content=body, headers=headers, timeout=60).status_code == 200:
                return True
        time.sleep(0.2)
    return False
