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
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import httpx

from tests.api.conftest import eventually
from tests.api.test_errors import error_of

ENDLESS = {"prompt": "a", "max_tokens": 16_000, "ignore_eos": True, "n": 20}


def test_requests_that_outlive_the_drain_are_told_that_the_server_stops(
    tiny_folder: Path, tmp_path: Path
) -> None:
    environment = {
        **os.environ,
        "CONVLM_BUNDLE": str(tiny_folder),
        "CONVLM_THREADS": "1",
        "CONVLM_DRAIN_SECONDS": "0.5",
    }
    command = [sys.executable, "-m", "app.cli", "serve", "--port", "0"]
    log = tmp_path / "log"
    stopped = threading.Event()
    with (
        log.open("w") as file,
        subprocess.Popen(command, env=environment, stderr=file, stdout=file) as process,
        ThreadPoolExecutor(4) as pool,
    ):
        try:
            eventually(lambda: "running on" in log.read_text(), "an address")
            url = log.read_text().split("running on ")[1].split()[0]
            with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
                eventually(lambda: client.get("/readyz").status_code == 200, "a loaded model")
                whole = pool.submit(client.post, "/v1/completions", json=ENDLESS)
                parts = pool.submit(_lines, client, "/v1/completions", {**ENDLESS, "stream": True})
                bulk = pool.submit(_lines, client, "/v1/score/stream", _upload(stopped))
                stalled = pool.submit(_stalled, url)
                eventually(lambda: _metric(client, "convlm_queue_tokens") > 600_000, "streams")
                scored = 'convlm_rows_total{kind="score"}'
                eventually(lambda: _metric(client, scored) > 0, "lines")
                process.send_signal(signal.SIGTERM)
                assert error_of(whole.result(), 503)["code"] == "not_ready"
                *_, error, end = (line for line in parts.result() if line)
                assert json.loads(error.removeprefix("data: "))["error"]["code"] == "not_ready"
                assert end == "data: [DONE]"
                for upload in (bulk, stalled):
                    first, *_, last = map(json.loads, upload.result())
                    assert first["index"] == 0
                    assert last["error"]["code"] == "not_ready"
                    assert "index" not in last
            assert process.wait(60) in (0, -signal.SIGTERM)
        finally:
            stopped.set()
            process.kill()
    assert "Traceback" not in log.read_text()


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
