"""What clients send to a running server, and what they see."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.bench.peers import environments
from tests.bench.peers.scorer import PATH, Setting
from tests.bench.peers.servers import Peer, Processes, convlm, free_port, running

Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Load:
    """Texts, one a request, in a closed loop from so many clients."""

    texts: list[str]
    clients: int


@dataclass(slots=True)
class Server:
    """A server, paused between loads.

    rates: tokens/s of each round; latencies: seconds of each request.
    """

    name: str
    how: str
    url: str
    processes: Processes
    lists: bool = False
    rates: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)

    def send(self, load: Load) -> tuple[float, list[float], list[Answer]]:
        """Tokens/s, seconds of each request, answers."""
        bodies = [body(text, lists=self.lists) for text in load.texts]
        sent = json.dumps({"url": self.url, "bodies": bodies, "clients": load.clients})
        command = [environments.python("client"), "-m", "tests.bench.peers.client"]
        with self.processes.awake():
            made = subprocess.run(
                command,
                cwd=environments.ROOT,
                input=sent,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
        found = json.loads(made.stdout)
        answers = [_totals(answer) for answer in found["answers"]]
        tokens = sum(answer["token_count"] for answer in answers)
        return tokens / found["seconds"], found["latencies"], answers


@contextmanager
def peer_server(peer: Peer, setting: Setting) -> Iterator[Server]:
    """A generic server that is ready."""
    setting = replace(setting, port=free_port())
    url = f"http://127.0.0.1:{setting.port}{PATH}"
    ready = body("Ready?", lists=peer.lists)
    with running(peer.command(setting.port), setting.environment(), url, ready) as processes:
        yield Server(peer.name, words(peer, setting), url, processes, peer.lists)


@contextmanager
def own_server(bundle: Path, precision: str, threads: int) -> Iterator[Server]:
    """convlm's own server, ready."""
    port = free_port()
    url = f"http://127.0.0.1:{port}{PATH}"
    command, variables = convlm(bundle, port, precision, threads)
    with running(command, variables, url, body("Ready?", lists=False)) as processes:
        yield Server("convlm", precision, url, processes)


def words(peer: Peer, setting: Setting) -> str:
    """A setting in words."""
    parts = [f"batches of up to {setting.batch}" if setting.batch > 1 else "unbatched"]
    kind = "workers" if peer.batches else "runs at once"
    parts.append(f"{setting.workers} {kind} × {setting.threads} threads")
    return ", ".join(parts)


def body(text: str, *, lists: bool) -> str:
    """A request, the same for all but for the form of its text; the peers have no `detail`."""
    return json.dumps({"input": [text] if lists else text, "detail": "totals"})


def _totals(answer: Any) -> Answer:
    """The totals of the one text, in the form of any server."""
    if isinstance(answer, dict) and "data" in answer:
        answer = answer["data"]
    found: Answer = answer[0] if isinstance(answer, list) else answer
    return found
