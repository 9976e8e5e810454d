"""A server that is stopped or killed: no request that has arrived is lost, and nothing is left."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import httpx
import pytest

from app.catalog.copies import BundleCopies, remove_abandoned
from app.server.sockets import has_unread, refuse_new
from app.settings import SHIPPED
from tests.api.conftest import PATIENCE_SECONDS, eventually
from tests.api.http.test_shutdown import ENDLESS, Process, running

CLIENTS = 200
TEXT = "a b " * 60
LONG: tuple[tuple[str, dict[str, object], bytes], ...] = (
    ("/v1/score", {"input": TEXT}, b'"usage"'),
    ("/v1/completions", {"prompt": "a", "max_tokens": 20, "stream": True}, b"[DONE]"),
    ("/v1/completions", {"prompt": "a", "max_tokens": 20, "n": 2}, b'"usage"'),
    ("/v1/score/stream", {"input": [TEXT, TEXT]}, b'"object":"summary"'),
)
"""Requests, and what the last of their answers has."""
PATIENT = {"CONVLM_DRAIN_SECONDS": str(PATIENCE_SECONDS)}


def ask_until_refused(server: Process, outcomes: Counter[str]) -> None:
    """Asks for a short text in a loop until no connection is accepted."""
    address = httpx.URL(server.url)
    connection = HTTPConnection(address.host, address.port or 80, timeout=PATIENCE_SECONDS)
    with closing(connection):
        while True:
            try:
                if connection.sock is None:
                    connection.connect()
            except ConnectionError:
                return
            try:
                connection.request("POST", "/v1/score", b'{"input": "a"}')
                answer = connection.getresponse()
                answer.read()
                outcomes[f"{answer.status} {answer.headers['connection']}"] += 1
            except (OSError, HTTPException) as error:
                outcomes[f"lost: {error!r}"] += 1
                connection.close()


def test_no_request_is_lost_when_the_server_stops(tiny_folder: Path, tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()
    with (
        running(tiny_folder, tmp_path / "log", **PATIENT, CONVLM_NOTICE_SECONDS="1") as server,
        ThreadPoolExecutor(8) as pool,
    ):
        loops = [pool.submit(ask_until_refused, server, outcomes) for _ in range(4)]
        eventually(lambda: outcomes["200 None"] > 0, "answers")
        begun = [server.begin(*LONG[number % len(LONG)][:2]) for number in range(CLIENTS)]
        server.stop()
        told = list(pool.map(partial(_get, server), ("/readyz", "/livez", "/metrics")))
        for number, connection in enumerate(begun):
            with closing(connection), connection.getresponse() as answer:
                assert answer.status == 200
                assert LONG[number % len(LONG)][2] in answer.read()[-200:]
        for loop in loops:
            loop.result()
        assert server.process.wait(PATIENCE_SECONDS) == 0
    assert set(outcomes) == {"200 None", "200 close"}, outcomes
    assert [answer.status_code for answer in told] == [503, 200, 200]
    assert told[0].json()["error"]["message"] == "the server is stopping"
    assert {answer.headers["connection"] for answer in told} == {"close"}


def _get(server: Process, path: str) -> httpx.Response:
    return httpx.get(server.url + path, timeout=PATIENCE_SECONDS, trust_env=False)


def test_new_connections_are_accepted_when_none_is_open(tiny_folder: Path, tmp_path: Path) -> None:
    patient = {**PATIENT, "CONVLM_NOTICE_SECONDS": str(PATIENCE_SECONDS)}
    with running(tiny_folder, tmp_path / "log", **patient) as server:
        time.sleep(0.2)  # the server sees the end of the connection that asked last
        server.stop()
        eventually(lambda: _get(server, "/readyz").status_code == 503, "the signal")
        answer = httpx.post(server.url + "/v1/score", json={"input": "a"}, trust_env=False)
        assert answer.status_code == 200
        upload = server.begin("/unknown", {"input": "a" * (10 << 20)})  # is answered at once
        with closing(upload), upload.getresponse() as early:
            assert early.status == 404
        time.sleep(0.2)  # signals that come together are one
        server.stop()


def test_a_second_signal_ends_at_once(tiny_folder: Path, tmp_path: Path) -> None:
    patient = {**PATIENT, "CONVLM_NOTICE_SECONDS": str(PATIENCE_SECONDS)}
    with (
        running(tiny_folder, tmp_path / "log", code=1, **patient) as server,
        closing(server.begin("/v1/completions", {**ENDLESS, "stream": True})) as stream,
        stream.getresponse() as answer,
    ):
        assert answer.read(1) == b"d"
        server.stop()
        eventually(lambda: _get(server, "/readyz").status_code == 503, "the first signal")
        time.sleep(0.2)  # signals that come together are one
        asked = time.monotonic()
        server.stop()
        assert server.process.wait(PATIENCE_SECONDS) == 1  # a request was cut off
        assert time.monotonic() - asked < PATIENCE_SECONDS / 2


def test_an_interrupt_skips_the_notice(tiny_folder: Path, tmp_path: Path) -> None:
    patient = {**PATIENT, "CONVLM_NOTICE_SECONDS": str(4 * PATIENCE_SECONDS)}
    with running(tiny_folder, tmp_path / "log", **patient) as server:
        half = server.begin("/v1/score", {"input": "a"}, sent=5)
        kept = server.begin("/v1/score", {"input": "a"})
        with closing(half), closing(kept):
            kept.getresponse().read()
            server.process.send_signal(signal.SIGINT)
            eventually(lambda: "Waiting for connections" in server.log.read_text(), "the end")
            half.send(b'{"input": "a"}\n'[5:])
            with half.getresponse() as answer:
                assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert server.process.wait(PATIENCE_SECONDS) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="others have no such filter")
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_socket_that_takes_no_new_connections_keeps_those_it_has(family: int) -> None:
    with socket.create_server(("", 0), family=family) as listening:
        address = ("127.0.0.1" if family == socket.AF_INET else "::1", listening.getsockname()[1])
        with socket.create_connection(address) as early:
            eventually(lambda: has_unread(listening.fileno()), "a connection to accept")
            refuse_new(listening.fileno())
            with pytest.raises(TimeoutError):
                socket.create_connection(address, timeout=0.1)
            accepted, _ = listening.accept()
            with accepted:
                assert not has_unread(listening.fileno())
                assert not has_unread(accepted.fileno())
                early.sendall(b"a request")
                eventually(lambda: has_unread(accepted.fileno()), "data")
                assert accepted.recv(100) == b"a request"


@contextmanager
def loading(temporary: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server that begins to load copies of the shipped bundle."""
    own = {"CONVLM_RELOAD_SECONDS": "60", "CONVLM_THREADS": "1", "TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "app.cli", "serve", "--port", "0"]
    with (
        log.open("w") as file,
        subprocess.Popen(command, env={**os.environ, **own}, stderr=file, stdout=file) as process,
    ):
        try:
            eventually(lambda: bool(list(temporary.iterdir())), "a copy")
            yield process
        finally:
            process.kill()


def test_nothing_is_left_by_servers_that_end_while_loading(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with loading(temporary, tmp_path / "log"):
        time.sleep(random.uniform(0, 0.5))  # killed anywhere in the copying and loading
    for signals in (1, 2):
        log = tmp_path / f"log-of-{signals}"
        with loading(temporary, log) as process:
            eventually(lambda: "running on" in log.read_text(), "a server")  # noqa: B023
            for _ in range(signals):
                process.terminate()
                time.sleep(0.2)  # signals that come together are one
            assert process.wait(PATIENCE_SECONDS) == 0
        assert list(temporary.iterdir()) == []


def test_copies_of_running_servers_and_other_folders_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    other, left = tmp_path / "convlm-tutorial", tmp_path / "convlm-bundle-left"
    for folder in (other, left, left / "bundle"):
        folder.mkdir()
    (tmp_path / "convlm-bundle-file").touch()
    (tmp_path / "convlm-bundle-link").symlink_to(other)
    with BundleCopies().frozen(SHIPPED) as copy:
        remove_abandoned()
        assert {path.name for path in copy.iterdir()} == {path.name for path in SHIPPED.iterdir()}
        assert not left.exists()
        assert other.exists()
        code = f"import fcntl, os; f = os.open({str(copy.parent)!r}, os.O_RDONLY)\n"
        code += "fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)"
        refused = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        assert b"BlockingIOError" in refused.stderr  # of other processes too
    assert not copy.parent.exists()
    assert (tmp_path / "convlm-bundle-file").exists()
