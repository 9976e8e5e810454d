"""The server under attack: a process of its own, of which memory and descriptors are seen."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.bench.served import metrics, resident

_READY_SECONDS = 60.0
_TRACEBACK = "Traceback (most recent call last)"


@dataclass(frozen=True, slots=True)
class State:
    """Megabytes (10^6 bytes) held, open descriptors, bytes of the log."""

    megabytes: float
    descriptors: int
    log_bytes: int


@dataclass(frozen=True, slots=True)
class Target:
    """A running server."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    temporary: Path

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def state(self) -> State:
        """What it has now."""
        pid = self.process.pid
        return State(resident(pid), self.descriptors(), self.log.stat().st_size)

    def descriptors(self) -> int:
        """Descriptors that it has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def forget_peak(self) -> None:
        """Makes the most memory it ever had what it has now."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def peak(self) -> float:
        """The most megabytes it had since then."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024 / 1e6

    def logged(self, since: int) -> tuple[int, int]:
        """Tracebacks and lines of errors in the log after a byte."""
        with self.log.open("rb") as file:
            file.seek(since)
            text = file.read().decode("utf-8", "replace")
        errors = len(re.findall(r"\berror\b[^\n]{0,40}|\bERROR\b|\bcritical\b", text))
        return text.count(_TRACEBACK), errors

    def recover(self, patience: float) -> float | None:
        """Seconds until it is ready with nothing left to do, None if it is not within patience."""
        began = time.monotonic()
        while time.monotonic() - began < patience and self.process.poll() is None:
            try:
                ready = httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
                if ready and metrics(self.url)["convlm_queue_tokens"] == 0:
                    return time.monotonic() - began
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
        return None


@contextmanager
def attacked(
    port: int, descriptors: int | None, folder: Path | None, **settings: object
) -> Iterator[Target]:
    """A server that is ready, with a folder for temporary files of its own.

    descriptors: its limit, None for the machine's. folder: the bundle, None for the shipped one.
    settings: by their lower-case names; those of this process do not count.
    """
    with tempfile.TemporaryDirectory() as root:
        temporary, log = Path(root) / "tmp", Path(root) / "log"
        temporary.mkdir()
        serve = [sys.executable, "-m", "app.cli", "serve", "--port", str(port or _free_port())]
        if folder is not None:
            serve += ["--bundle", str(folder)]
        if descriptors is not None:
            serve = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *serve]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CONVLM_")}
        environment |= {f"CONVLM_{name.upper()}": str(value) for name, value in settings.items()}
        environment["TMPDIR"] = str(temporary)
        with log.open("wb") as output:
            process = subprocess.Popen(serve, env=environment, stdout=output, stderr=output)
        target = Target(process, int(serve[serve.index("--port") + 1]), log, temporary)
        try:
            if target.recover(_READY_SECONDS) is None:
                raise SystemExit(f"the server is not ready:\n{log.read_text()[-2000:]}")
            yield target
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
