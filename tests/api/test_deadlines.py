"""Times that requests give, waits that are too long, and work that keeps nobody out."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api import bulk_pipeline
from app.errors import EngineError
from tests import texts
from tests.api.conftest import PATIENCE_SECONDS, Server, crowded, eventually, serving, settings_for

BODIES: dict[str, dict[str, Any]] = {
    "/v1/score": {"input": texts.ALICE},
    "/v1/rescore": {"utterances": [{"hypotheses": [texts.ALICE, texts.PRIDE]}]},
    "/v1/next": {"input": "Alice"},
    "/v1/completions": {"prompt": "Alice", "max_tokens": 5},
}
HEADER = "x-request-timeout-ms"


@contextmanager
def held(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keeps the engine from running batches until the block ends."""
    released = threading.Event()
    runner = server.model.engine.runner
    run = runner.run

    def gated(batch: Any) -> Any:
        released.wait(PATIENCE_SECONDS)
        return run(batch)

    with monkeypatch.context() as patches:
        patches.setattr(runner, "run", gated)
        try:
            yield
        finally:
            released.set()
            eventually(lambda: not server.model.engine.waiting, "no work with the engine")


def assert_late(response: httpx.Response) -> None:
    assert response.status_code == 504, response.text
    assert response.json()["error"]["code"] == "timeout"
    assert response.headers["x-should-retry"] == "false"
    assert "retry-after" not in response.headers


@pytest.mark.parametrize("path", BODIES)
def test_what_is_not_answered_in_its_time_is_dropped(
    server: Server, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = 'convlm_requests_rejected_total{reason="timeout"}'
    before = server.metric(reason)
    with held(server, monkeypatch):
        assert_late(server.post(path, **BODIES[path], timeout_seconds=0.05))
        assert_late(server.client.post(path, json=BODIES[path], headers={HEADER: "50"}))
        later = {**BODIES[path], "timeout_seconds": 1000}
        assert_late(server.client.post(path, json=later, headers={HEADER: "50"}))
        assert server.model.admission.tokens == 0
    assert server.metric(reason) == before + 3
    server.assert_alive()


@pytest.mark.parametrize("path", BODIES)
def test_what_is_answered_in_its_time_is_the_same(server: Server, path: str) -> None:
    body = {**BODIES[path], **({"seed": 1} if path.endswith("completions") else {})}
    plain = server.ask(path, **body)
    timed = server.ask(path, **body, timeout_seconds=1000, priority=3)
    for answer in (plain, timed):
        answer.pop("id", None)
        answer.pop("created", None)
    assert plain == timed


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "soon", "", "1" * 20])
def test_a_time_that_is_none_is_refused_by_the_headers_name(server: Server, value: str) -> None:
    response = server.client.post("/v1/score", json={"input": "a"}, headers={HEADER: value})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == HEADER


def test_a_stream_whose_time_is_over_says_so_and_ends(server: Server) -> None:
    body = {"prompt": "Alice", "max_tokens": 16_000, "ignore_eos": True, "stream": True}
    found: list[str] = []
    with server.client.stream(
        "POST", "/v1/completions", json={**body, "timeout_seconds": 0.5}
    ) as response:
        assert response.status_code == 200
        found = [line[6:] for line in response.iter_lines() if line]
    assert found[-1] == "[DONE]"
    assert json.loads(found[-2])["error"]["code"] == "timeout"
    assert "choices" in json.loads(found[0])
    server.assert_alive()


def test_a_line_whose_time_is_over_gets_the_error_and_others_their_answers(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [{"input": texts.ALICE, "timeout_seconds": 0.05}, {"input": "Alice"}]
    content = "\n".join(map(json.dumps, lines))
    found: list[dict[str, Any]] = []

    def ask() -> None:
        response = server.client.post("/v1/score/stream?order=completed", content=content)
        found.extend(json.loads(line) for line in response.text.splitlines())

    late = 'convlm_requests_rejected_total{reason="timeout"}'
    before = server.metric(late)
    with held(server, monkeypatch):
        asking = threading.Thread(target=ask)
        asking.start()
        eventually(lambda: server.metric(late) > before, "a line that is late")
    asking.join()
    first, second, summary = found
    assert (first["index"], first["error"]["code"]) == (0, "timeout")
    assert second["index"] == 1
    assert second["data"]
    assert summary["errors"] == 1


def bulk_answers(server: Server, *lines: dict[str, Any]) -> list[dict[str, Any]]:
    content = "".join(json.dumps(line) + "\n" for line in lines)
    response = server.client.post("/v1/score/stream", content=content)
    return [json.loads(line) for line in response.text.splitlines()]


def test_a_long_lines_time_counts_while_others_are_written(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_pipeline, "MAX_BUFFERED_ENTRIES", 10)
    found: list[dict[str, Any]] = []
    lines = [{"input": texts.ALICE}, {"input": texts.ALICE, "timeout_seconds": 0.05}]
    asking = threading.Thread(target=lambda: found.extend(bulk_answers(server, *lines)))
    with held(server, monkeypatch):
        asking.start()
        eventually(lambda: server.model.engine.waiting > 0, "a line in work")
        threading.Event().wait(0.1)
    asking.join()
    assert "data" in found[0]
    assert (found[1]["index"], found[1]["error"]["code"]) == (1, "timeout")
    assert found[2]["errors"] == 1


def test_a_long_line_that_has_begun_is_cut_off_when_its_time_is_over(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = server.model.engine.runner
    run, ended = runner.run, threading.Event()
    batches = 0

    def stalls(batch: Any) -> Any:
        nonlocal batches
        batches += 1
        if batches > 1:
            ended.wait(20)
        return run(batch)

    monkeypatch.setattr(runner, "run", stalls)
    line = {"input": ["Alice", "a " * 60_000], "timeout_seconds": 2.0}
    response = server.client.post("/v1/score/stream", json=line)
    ended.set()
    torn, last = response.text.splitlines()
    assert torn.startswith('{"index":0')
    last = json.loads(last)
    assert "index" not in last
    assert last["error"]["code"] == "timeout"
    monkeypatch.undo()
    server.assert_alive()


def test_a_lines_time_is_not_given_again_when_it_is_tried_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails_slowly(*_: Any) -> None:
        await asyncio.sleep(0.2)
        raise EngineError("always")

    monkeypatch.setattr(bulk_pipeline.Bulk, "_score", fails_slowly)
    *found, _ = bulk_answers(server, *[{"input": "Alice", "timeout_seconds": 0.3}] * 3)
    assert [line["error"]["code"] for line in found] == ["timeout"] * 3


def test_what_has_had_no_row_in_time_is_refused_as_if_at_once(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(settings_for(tiny_folder, max_queue_seconds=0.2)) as server:
        found: list[httpx.Response] = []
        asking = [
            threading.Thread(target=lambda a=ask: found.append(server.post(*a[:1], **a[1])))
            for ask in [("/v1/score", {"input": "Alice"})] * 2
            + [("/v1/completions", {"prompt": "Alice", "max_tokens": 1, "stream": True})]
        ]
        with held(server, monkeypatch):
            asking[0].start()
            scheduler = server.model.engine.loops[0].scheduler
            eventually(lambda: scheduler.running_rows > 0, "a batch that runs")
            one = server.model.engine.waiting
            server.model.engine.loops[0].rate.per_second = 1e6
            for thread in asking[1:]:
                thread.start()
            eventually(lambda: server.model.engine.waiting == 3 * one, "others that wait")
            threading.Event().wait(0.3)
        for thread in asking:
            thread.join()
        assert sorted(response.status_code for response in found) == [200, 503, 503]
        late = [response for response in found if response.status_code == 503]
        assert all(response.json()["error"]["code"] == "overloaded" for response in late)
        assert all(int(response.headers["retry-after"]) >= 1 for response in late)
        assert server.metric('convlm_requests_rejected_total{reason="expired"}') == 2


def test_a_full_queue_refuses_before_the_body_is_read(server: Server) -> None:
    with crowded(server, 2_000_000, 1000.0):
        response = server.client.post("/v1/score", content=b"no JSON")
        assert response.status_code == 503
        assert response.headers["retry-after"] == "120"  # 1,990 s
        assert response.headers["x-should-retry"] == "false"
        assert server.metric("convlm_queue_seconds") == 2000
    assert server.client.post("/v1/score", content=b"no JSON").status_code == 400


def test_bulk_is_refused_where_interactive_requests_are_taken(server: Server) -> None:
    with crowded(server, 10_000, 1000.0, bulk=10_000):
        assert server.post("/v1/score", input="Alice", priority=1).status_code == 503
        assert server.post("/v1/score", input="Alice").status_code == 200


def test_a_completion_of_thousands_of_choices_and_tokens_refuses_nobody(server: Server) -> None:
    body = {"prompt": "Alice", "n": 1024, "max_tokens": 16_384, "ignore_eos": True, "stream": True}
    with server.client.stream("POST", "/v1/completions", json=body) as response:
        next(response.iter_bytes())
        assert server.post("/v1/score", input=texts.ALICE).status_code == 200
        assert server.ask("/v1/completions", prompt="She", max_tokens=3)["choices"]
        scheduler = server.model.engine.loops[0].scheduler
        # nobody reads on: the choices stop
        eventually(lambda: not scheduler.ready, "streams that have stopped")
        assert server.post("/v1/score", input=texts.ALICE).status_code == 200
    server.assert_alive()
