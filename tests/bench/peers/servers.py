"""The servers that are compared, and how each is started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
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
_LOG_SHOWN = 3000
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
    """A server's processes: a session of their own, and what left it."""

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
        for pid in self._members():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _members(self) -> set[int]:
        found, parents = set(), {}
        for entry in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it has ended
                _, parent, _, session, *_ = entry.read_text().rpartition(")")[2].split()
                parents[int(entry.parent.name)] = int(parent)
                if int(session) == self.leader:
                    found.add(int(entry.parent.name))
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return found


@contextmanager
def running(command: list[str], variables: Variables, url: str, body: str) -> Iterator[Processes]:
    """A server from when it answers. Raises RuntimeError, with what it wrote, if it never does."""
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115, the server has it until it ends
    process = subprocess.Popen(
        command,
        cwd=environments.ROOT,
        env={**os.environ, **_VARIABLES, **variables},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    processes = Processes(process.pid)
    try:
        if not _answers(process, url, body):
            log.seek(0)
            raise RuntimeError(f"{' '.join(command)} does not answer:\n{log.read()[-_LOG_SHOWN:]}")
        processes.signal(signal.SIGSTOP)
        yield processes
    finally:
        processes.signal(signal.SIGCONT)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
        processes.signal(signal.SIGKILL)
        process.wait()
        log.close()


def _answers(process: subprocess.Popen[bytes], url: str, body: str) -> bool:
    headers = {"Content-Type": "application/json"}
    end = time.monotonic() + _READY_SECONDS
    while process.poll() is None and time.monotonic() < end:
        with suppress(httpx.TransportError):
            if httpx.post(url, content=body, headers=headers, timeout=60).status_code == 200:
                return True
        time.sleep(0.2)
    return False
