"""A server that is stopped: what is open when the time is up ends with an error that says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, IncompleteRead
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.catalog.catalog import Catalog
from app.client.bulk import Window
from app.errors import NotReadyError
from app.metrics import Metrics
from tests.api.conftest import PATIENCE_SECONDS, eventually, settings_for
from tests.api.http.test_errors import error_of

ENDLESS = {"prompt": "a", "max_tokens": 16_000, "ignore_eos": True, "n": 20}
LONG = {"input": "a b " * 100_000, "detail": "tokens"}


@dataclass
class Process:
    """A server in a process of its own."""

    process: subprocess.Popen[bytes]
    log: Path
    url: str

    def stop(self) -> None:
        """Has it stop."""
        self.process.send_signal(signal.SIGTERM)

    def begin(self, path: str, body: dict[str, object], sent: int | None = None) -> HTTPConnection:
        """Asks, with a part of the body alone if `sent` says how much."""
        content = json.dumps(body).encode() + b"\n"
        address = httpx.URL(self.url)
        connection = HTTPConnection(address.host, address.port or 80, timeout=PATIENCE_SECONDS)
        connection.putrequest("POST", path)
        connection.putheader("content-length", str(len(content)))
        connection.endheaders()
        connection.send(content[:sent])
        return connection


@contextmanager
def running(folder: Path, log: Path, *, code: int = 0, **changed: str) -> Iterator[Process]:
    """A server that is ready, and has ended without a traceback after the block, with a status."""
    own = {"CONVLM_BUNDLE": str(folder), "CONVLM_THREADS": "1", "CONVLM_DRAIN_SECONDS": "0.5"}
    environment = {**os.environ, **own, **changed}
    command = [sys.executable, "-m", "app.cli", "serve", "--port", "0"]
    with (
        log.open("w") as file,
        subprocess.Popen(command, env=environment, stderr=file, stdout=file) as process,
    ):
        try:
            eventually(lambda: "running on" in log.read_text(), "an address")
            url = log.read_text().split("running on ")[1].split()[0]
            ready = f"{url}/readyz"
            eventually(lambda: httpx.get(ready, trust_env=False).status_code == 200, "a model")
            yield Process(process, log, url)
            assert process.wait(PATIENCE_SECONDS) == code
        finally:
            process.kill()
    assert "Traceback" not in log.read_text()


def test_requests_that_outlive_the_drain_are_told_that_the_server_stops(
    tiny_folder: Path, tmp_path: Path
) -> None:
    stopped = threading.Event()
    with (
        running(tiny_folder, tmp_path / "log") as server,
        ThreadPoolExecutor(4) as pool,
        httpx.Client(base_url=server.url, timeout=PATIENCE_SECONDS, trust_env=False) as client,
        closing(server.begin("/v1/completions", ENDLESS, sent=12)) as half,
    ):
        whole = pool.submit(client.post, "/v1/completions", json=ENDLESS)
        parts = pool.submit(_lines, client, "/v1/completions", {**ENDLESS, "stream": True})
        bulk = pool.submit(_lines, client, "/v1/score/stream", _upload(stopped))
        stalled = pool.submit(_stalled, server.url)
        eventually(lambda: _metric(client, 'convlm_rows_total{kind="decode"}') > 0, "streams")
        scored = 'convlm_rows_total{kind="score"}'
        eventually(lambda: _metric(client, scored) > 0, "lines")
        offers = {"connection": "Upgrade", "upgrade": "h2c"}  # as Java's client does
        assert client.post("/v1/score", json={"input": "a"}, headers=offers).status_code == 200
        server.stop()
        try:
            assert error_of(whole.result(), 503)["code"] == "not_ready"
            *_, error, end = (line for line in parts.result() if line)
            assert json.loads(error.removeprefix("data: "))["error"]["code"] == "not_ready"
            assert end == "data: [DONE]"
            for upload in (bulk, stalled):
                first, *_, last = map(json.loads, upload.result())
                assert first["index"] == 0
                assert last["error"]["message"] == "the server is stopping"
                assert last["error"]["code"] == "not_ready"
                assert "index" not in last
            answer = half.getresponse()
            assert answer.status == 503
            assert json.loads(answer.read())["error"]["message"] == "the server is stopping"
        finally:
            stopped.set()


def test_long_answers_break_off(tiny_folder: Path, tmp_path: Path) -> None:
    slow = {"CONVLM_MAX_BATCH_TOKENS": "1"}
    with (
        running(tiny_folder, tmp_path / "log", **slow) as server,
        closing(server.begin("/v1/score", LONG)) as one,
        closing(server.begin("/v1/score/stream", LONG)) as line,
    ):
        document, lines = one.getresponse(), line.getresponse()
        assert document.read(1) == lines.read(1) == b"{"
        server.stop()
        with pytest.raises(IncompleteRead):
            document.read()
        torn, last = lines.read().splitlines()
        with pytest.raises(json.JSONDecodeError):
            json.loads(b"{" + torn)
        assert json.loads(last)["error"]["code"] == "not_ready"
        window = Window(0, [b"a line"])
        window.content()
        window.feed(b"{" + torn + b"\n" + last + b"\n")
        refused = window.end()
        assert isinstance(refused, httpx.Response)
        assert refused.status_code == 503


def test_a_model_that_is_being_loaded_is_not_waited_for(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = Catalog(settings_for(tiny_folder), Metrics())
    catalog.load()
    begun, go_on = threading.Event(), threading.Event()
    opened = "app.catalog.catalog.load_model"

    def slow(*_: Any) -> None:
        begun.set()
        go_on.wait()
        raise RuntimeError("enough")

    monkeypatch.setattr(opened, slow)
    catalog._tried.clear()  # its bundle has changed
    loading = threading.Thread(target=catalog.refresh, kwargs={"at_once": True})
    loading.start()
    try:
        assert begun.wait(PATIENCE_SECONDS)
        (model,) = catalog.models
        catalog.stop()
        assert not model.engine.running
        with pytest.raises(NotReadyError, match="stopping"):
            catalog.check()
    finally:
        go_on.set()
        loading.join()
        catalog.close()


def _metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(name))


def _upload(stopped: threading.Event) -> Iterator[bytes]:
    """A line now and then."""
    while not stopped.wait(0.05):
        yield b'{"input": "a line", "detail": "totals"}\n'


def _stalled(url: str) -> list[str]:
    """The answer to an upload that does not go on behind its first line."""
    address = httpx.URL(url)
    with closing(HTTPConnection(address.host, address.port or 80, timeout=60)) as connection:
        connection.putrequest("POST", "/v1/score/stream")
        connection.putheader("transfer-encoding", "chunked")
        connection.endheaders()
        line = b'{"input": "a line", "detail": "totals"}\n'
        connection.send(b"%x\r\n%b\r\n" % (len(line), line))
        return connection.getresponse().read().decode().splitlines()


def _lines(client: httpx.Client, path: str, body: dict[str, object] | Iterator[bytes]) -> list[str]:
    given = {"json": body} if isinstance(body, dict) else {"content": body}
    with client.stream("POST", path, **given) as answer:
        return list(answer.iter_lines())
