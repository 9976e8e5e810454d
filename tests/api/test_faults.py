"""Faults of the engine while others are served: who is concerned, readiness, recovery, the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.engine.runtime.session import Session
from tests.api.conftest import PATIENCE_SECONDS, Server, eventually, serving, settings_for
from tests.api.http.test_errors import error_of
from tests.bench import faulty_server

TEXTS = [[5 + n] * (3 + 7 * n) for n in range(12)]
STREAMS = [{"prompt": "a b", "max_tokens": 20, "seed": n, "ignore_eos": True} for n in range(4)]
LATE = {"CONVLM_MAX_BATCH_SECONDS": "0.2", "CONVLM_DRAIN_SECONDS": "0.2", "CONVLM_THREADS": "1"}


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Injects a fault until the test ends."""

    def injected(kind: str, seconds: float = 0.0) -> None:
        monkeypatch.setattr(Session, "run", Session.run)
        faulty_server.inject(kind, seconds)

    return injected


def ask_all(server: Server) -> list[Any]:
    """What scores, lines and streams get that are asked for at the same time."""

    def score(ids: list[int]) -> Any:
        return server.ask("/v1/score", input=ids)["data"]

    def complete(body: dict[str, Any]) -> Any:
        return server.ask("/v1/completions", **body)["choices"]

    def lines() -> Any:
        content = b"".join(json.dumps({"input": ids}).encode() + b"\n" for ids in TEXTS)
        answer = server.client.post("/v1/score/stream", content=content)
        return [json.loads(line) for line in answer.text.splitlines()]

    with ThreadPoolExecutor(24) as pool:
        waiting = [pool.submit(lines)]
        waiting += [pool.submit(score, ids) for ids in TEXTS]
        waiting += [pool.submit(complete, body) for body in STREAMS]
        return [each.result() for each in waiting]


@pytest.mark.parametrize("kind", ["exception", "nan", "memory"])
def test_who_is_not_concerned_gets_the_same_bits(kind: str, server: Server, fault: Any) -> None:
    calm = ask_all(server)
    bad = faulty_server.poisoned(server.model.tokenizer.size)
    fault(kind)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(lambda: [server.post("/v1/score", input=bad) for _ in range(5)])
        assert ask_all(server) == calm
        statuses = {answer.status_code for answer in asking.result()}
    assert statuses == ({200} if kind == "memory" else {500})
    server.assert_alive()


def test_a_line_of_bulk_that_is_at_fault_fails_alone(server: Server, fault: Any) -> None:
    bad = faulty_server.poisoned(server.model.tokenizer.size)
    texts = [*TEXTS[:5], bad, *TEXTS[5:]]
    content = b"".join(json.dumps({"input": ids}).encode() + b"\n" for ids in texts)
    fault("exception")
    answer = server.client.post("/v1/score/stream", content=content)
    *lines, summary = [json.loads(line) for line in answer.text.splitlines()]
    assert [n for n, line in enumerate(lines) if "error" in line] == [5]
    assert (summary["lines"], summary["errors"]) == (len(texts), 1)


def test_a_server_is_not_ready_while_a_batch_is_late_and_what_waits_waits_on(
    tiny_folder: Path, fault: Any
) -> None:
    with serving(settings_for(tiny_folder, max_batch_seconds=0.3)) as server:
        bad = faulty_server.poisoned(server.model.tokenizer.size)
        calm = server.ask("/v1/score", input=TEXTS[0])["data"]
        fault("hang", 0.8)  # less than the time after which the server gives up
        late = threading.Event()

        def lines() -> Iterator[bytes]:
            for number in range(200):
                if number == 1:
                    assert late.wait(PATIENCE_SECONDS)
                yield json.dumps({"input": TEXTS[0]}).encode() + b"\n"

        with ThreadPoolExecutor(3) as pool:
            bulk = pool.submit(server.client.post, "/v1/score/stream", content=lines())
            eventually(lambda: server.metric("convlm_batch_rows_count") > 1, "the first line")
            hanging = pool.submit(server.ask, "/v1/score", input=bad)
            eventually(lambda: server.metric("convlm_oldest_batch_seconds") > 0, "a long batch")
            waiting = pool.submit(server.ask, "/v1/score", input=TEXTS[0])
            eventually(lambda: server.client.get("/readyz").status_code == 503, "a late batch")
            error = error_of(server.client.get("/readyz"), 503)
            assert "max_batch_seconds, 0.3" in error["message"]
            assert error_of(server.post("/v1/score", input=TEXTS[0]), 503)["code"] == "not_ready"
            assert server.client.get("/livez").status_code == 200
            late.set()  # further lines come, and wait
            server.wait_until_ready()
            assert waiting.result()["data"] == calm
            assert hanging.result()["data"]
        *answers, summary = map(json.loads, bulk.result().text.splitlines())
        assert summary["errors"] == 0
        assert all(answer["data"] == calm for answer in answers)
        server.assert_alive()
        assert not server.failures


class Process:
    """A server with a fault in a process of its own."""

    def __init__(self, folder: Path, log: Path, kind: str) -> None:
        command = [sys.executable, "-m", "tests.bench.faulty_server", kind, "serve", "--port", "0"]
        environment = {**os.environ, **LATE, "CONVLM_BUNDLE": str(folder)}
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        eventually(lambda: "running on" in log.read_text(), "an address")
        self.url = log.read_text().split("running on ")[1].split()[0]
        eventually(lambda: self.get("/readyz") == 200, "a model")

    def get(self, path: str) -> int:
        return httpx.get(self.url + path, trust_env=False).status_code


@pytest.mark.parametrize("told", [False, True])
def test_a_server_whose_batch_never_ends_ends_itself(
    told: bool, tiny_folder: Path, tmp_path: Path, tokenizer: Any
) -> None:
    """told: whether it is told to stop meanwhile."""
    server = Process(tiny_folder, tmp_path / "log", "endless")
    try:
        bad = {"input": faulty_server.poisoned(tokenizer.size)}
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(
                httpx.post, server.url + "/v1/score", json=bad, trust_env=False, timeout=60
            )
            if told:
                eventually(lambda: server.get("/readyz") == 503, "a late batch")
                server.process.send_signal(signal.SIGTERM)
            assert error_of(answer.result(), 503)["code"] == "not_ready"
        status = server.process.wait(PATIENCE_SECONDS)
    finally:
        server.process.kill()
        server.process.wait()
    log = server.log.read_text()
    if told:
        assert status in (0, 1)  # the batch may be given up before the server is stopped
    else:
        assert status == 1
        assert log.count("engine stopped: a batch of the engine has been running for") == 1
    assert log.count("engine not ready: a batch of the engine") <= 1
    assert "Traceback" not in log


def test_a_server_whose_engine_always_fails_says_so_and_leaves_nobody_waiting(
    tiny_folder: Path, fault: Any
) -> None:
    with serving(settings_for(tiny_folder)) as server:
        bad = faulty_server.poisoned(server.model.tokenizer.size)
        fault("always")
        error = error_of(server.post("/v1/score", input=[[n, *bad] for n in range(2, 10)]), 503)
        assert error["message"].startswith("the engine has stopped: 3 batches failed")
        assert error_of(server.client.get("/readyz"), 503)["message"] == error["message"]
        assert server.client.get("/livez").status_code == 200
        eventually(lambda: bool(server.failures), "a failure")
