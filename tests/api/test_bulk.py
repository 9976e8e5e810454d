"""POST /v1/score/stream: a line in, a line out, whatever is wrong with others."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlparse

import pytest

from app.api import bulk_pipeline as bulk_lines
from tests import texts
from tests.api.conftest import Server, crowded, eventually, serving, settings_for

PATH = "/v1/score/stream"


def answers(server: Server, *lines: Any, order: str = "input") -> list[dict[str, Any]]:
    """The answers to lines, the summary last; what is no bytes is sent as JSON."""
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    response = server.client.post(PATH, content=b"\n".join(raw), params={"order": order})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.content.endswith(b"\n")
    return [json.loads(line) for line in response.content.splitlines()]


def alone(server: Server, index: int, custom_id: str | None, **body: Any) -> dict[str, Any]:
    """What a line's answer should be, by the endpoint of one request."""
    response = server.post("/v1/score", **body).json()
    return {"index": index, "custom_id": custom_id, **response}


BODIES: list[dict[str, Any]] = [
    {"input": "Alice was beginning"},
    {"input": ["one text", "another one"], "detail": "totals"},
    {"input": " I go.", "context": "Where are you going?", "add_eos": True},
    {"input": "", "add_eos": True},
    {"input": "emoji 🎈 and\r\nlines", "top_logprobs": 3},
    {"input": [texts.ALICE] * 3, "context": "Alice", "detail": "totals"},
    {"input": "Alice was beginning", "model": "tiny", "top_logprobs": 3},
]


@pytest.mark.parametrize("order", ["input", "completed"])
def test_a_line_gives_what_its_body_gives_alone(server: Server, order: str) -> None:
    bodies = BODIES * 30  # several groups
    lines = [{"custom_id": f"line {n}", **body} for n, body in enumerate(bodies)]
    *found, summary = answers(server, *lines, order=order)
    if order == "completed":
        found.sort(key=lambda one: one["index"])
    once = [alone(server, n, f"line {n}", **body) for n, body in enumerate(BODIES)]
    for number, one in enumerate(found):
        expected = once[number % len(BODIES)]
        assert one == {**expected, "index": number, "custom_id": f"line {number}"}
    tokens = sum(one["usage"]["total_tokens"] for one in found)
    assert summary == {"object": "summary", "lines": len(bodies), "errors": 0, "tokens": tokens}


def test_a_batch_line_of_openai_is_opened(server: Server) -> None:
    body = {"input": "Alice", "detail": "totals"}
    envelope = {"custom_id": "a", "method": "POST", "url": "/v1/score", "body": body}
    found = answers(server, envelope, {"body": body})
    assert found[0] == alone(server, 0, "a", **body)
    assert found[1] == alone(server, 1, None, **body)


BAD: list[tuple[Any, str | None]] = [
    ({"input": ["a", 3]}, "input.1"),
    ({"input": ""}, "input"),
    ({"input": ["a", ""]}, "input.1"),
    ({"input": "a", "custom_id": "x", "colour": 1}, "colour"),
    ({"input": "a", "model": "none"}, "model"),
    ({"input": "a", "top_logprobs": 21}, "top_logprobs"),
    ({"input": "a", "custom_id": 7}, "custom_id"),
    ({}, "input"),
    ({"body": {"input": "a"}, "method": "GET"}, "method"),
    ({"body": {"input": "a"}, "url": "/v1/completions"}, "url"),
    ({"body": 3}, "body"),
    ({"body": {"input": "a"}, "colour": 1}, "colour"),
    (b"hello", None),
    (b'{"input": "\xff"}', None),
    (b'{"input": "\\ud800"}', None),
    (b'{"input": ', None),
    (b"[" * 10_000, None),
    (b"[]", None),
    (b"null", None),
    (b'"a text"', None),
]


@pytest.mark.parametrize("order", ["input", "completed"])
def test_a_bad_line_gives_one_error_and_the_rest_goes_on(server: Server, order: str) -> None:
    good = {"input": "Alice was beginning", "detail": "totals"}
    lines = [line for bad, _ in BAD for line in (bad, good)]
    *found, summary = answers(server, *lines, order=order)
    assert summary["lines"] == len(lines)
    assert summary["errors"] == len(BAD)
    assert sorted(one["index"] for one in found) == list(range(len(lines)))
    for one in found:
        if one["index"] % 2:
            assert one["data"][0]["token_count"] > 0
        else:
            assert one["error"]["type"] == "invalid_request_error"
            assert one["error"]["param"] == BAD[one["index"] // 2][1]


def test_an_error_is_that_of_one_request_and_names_its_line(server: Server) -> None:
    found = answers(server, {"custom_id": "x", "input": ["a", ""]}, {"input": "a"})
    expected = server.post("/v1/score", input=["a", ""]).json()
    assert found[0] == {"index": 0, "custom_id": "x", **expected}
    (bad, _) = answers(server, {"custom_id": "x", "input": 3})
    assert bad["custom_id"] == "x"


def test_an_id_of_any_length_comes_back(server: Server) -> None:
    long = "x" * 100_000
    body = {"input": "Alice", "detail": "totals"}
    found = answers(server, {"custom_id": long, **body}, {"custom_id": long, "input": 3})
    assert found[0] == alone(server, 0, long, **body)
    assert found[1]["custom_id"] == long
    assert found[1]["error"]["param"] is not None


def test_a_line_that_is_no_strict_json_keeps_its_id(server: Server) -> None:
    found = answers(
        server,
        b'{"custom_id": "a", "input": "\\ud800"}',
        b'{"custom_id": "b", "input": "' + b"x" * 70_000 + b'\\ud800"}',
        b'{"custom_id": "c\\ud800", "input": "a"}',
        b'{"custom_id": 7, "input": "a"}',
    )
    assert [one["custom_id"] for one in found[:-1]] == ["a", "b", "c\\ud800", None]
    assert found[-1]["errors"] == 4


def test_limits_hold_for_a_line_and_not_for_the_body(small: Server) -> None:
    good = {"input": "Alice was beginning to get very tired", "detail": "totals"}
    lines: list[Any] = [good] * 400  # more than the bytes, tokens and texts of a request
    lines[100] = {"input": "long " * 5000}
    lines[200] = {"input": ["a"] * 9}
    lines[300] = {"input": "ab " * 1001}
    *found, summary = answers(small, *lines)
    assert summary["errors"] == 3
    limits = {100: "max_request_bytes", 200: "max_request_texts", 300: "max_request_tokens"}
    for index, one in enumerate(found):
        assert one["index"] == index
        if index in limits:
            assert limits[index] in one["error"]["message"]
            assert one["error"]["code"] == "request_too_large"
        else:
            assert one["usage"] == found[0]["usage"]


def test_blank_lines_are_counted_and_not_answered(server: Server) -> None:
    good = b'{"input": "a", "detail": "totals"}'
    found = answers(server, b"", good, b"  \r", good + b"\r", b"")
    assert [one.get("index") for one in found] == [1, 3, None]
    assert found[-1]["lines"] == 2
    assert answers(server, b"") == [{"object": "summary", "lines": 0, "errors": 0, "tokens": 0}]


def test_a_long_line_is_written_as_it_comes(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_lines, "MAX_BUFFERED_ENTRIES", 100)
    long, short = {"input": texts.ALICE}, {"input": "Alice", "detail": "totals"}
    *found, _ = answers(server, short, long, short, {"input": " ".join(["a"] * 200), "model": "?"})
    assert found[1] == alone(server, 1, None, **long)
    assert found[2] == alone(server, 2, None, **short)
    assert found[3]["error"]["code"] == "model_not_found"


def test_an_order_that_there_is_not_is_refused(server: Server) -> None:
    response = server.client.post(PATH, content=b"{}", params={"order": "random"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "order"


def test_no_line_is_lost_while_answers_go_out_and_the_body_still_comes(server: Server) -> None:
    count = 4_000
    url = urlparse(server.url)
    connection = socket.create_connection((url.hostname, url.port), timeout=60)
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    connection.sendall(head.encode())

    def send() -> None:
        for first in range(0, count, 100):
            part = b"".join(
                b'{"custom_id": "%d", "input": "a", "detail": "totals"}\n' % n
                for n in range(first, first + 100)
            )
            connection.sendall(b"%x\r\n%b\r\n" % (len(part), part))
        connection.sendall(b"0\r\n\r\n")

    sender = threading.Thread(target=send)
    sender.start()
    answer = bytearray()
    while not answer.endswith(b"\r\n0\r\n\r\n"):
        part = connection.recv(1 << 16)
        assert part
        answer += part
    sender.join()
    connection.close()
    _, _, body = bytes(answer).partition(b"\r\n\r\n")
    lines = _unchunked(body).splitlines()
    assert [json.loads(line)["custom_id"] for line in lines[:-1]] == [str(n) for n in range(count)]
    assert json.loads(lines[-1])["lines"] == count


def _unchunked(body: bytes) -> bytes:
    parts = []
    while body:
        size, _, body = body.partition(b"\r\n")
        parts.append(body[: int(size, 16)])
        body = body[int(size, 16) + 2 :]
    return b"".join(parts)


class Caller:
    """Speaks to the application without a network, so that it decides when what is heard."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self.lines = lines
        self.asked = 0
        self.sent: list[bytes] = []
        self.reads = asyncio.Event()
        self.left = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        self.asked += 1
        body = next(self.lines, None)
        if body is None:
            await self.left.wait()
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": body, "more_body": True}

    async def send(self, message: dict[str, Any]) -> None:
        await self.reads.wait()
        self.sent.append(message.get("body", b""))

    async def ask(self, server: Server) -> None:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": PATH,
            "raw_path": PATH.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        await server.app(scope, self.receive, self.send)  # type: ignore[arg-type]
        while server.model.engine.waiting:  # the engine still knows this event loop
            await asyncio.sleep(0.001)


def test_a_client_that_does_not_read_is_not_read_from(server: Server) -> None:
    line = b'{"input": "Alice was", "detail": "totals"}\n'

    async def run() -> None:
        caller = Caller(line * 10 for _ in range(200))
        asking = asyncio.create_task(caller.ask(server))
        before = -1
        while caller.asked != before or server.model.engine.waiting:  # until nothing moves
            before = caller.asked
            await asyncio.sleep(0.05)
        assert caller.asked <= bulk_lines.WORK_LINES / 10 + 1
        caller.reads.set()
        while caller.asked <= 200:
            await asyncio.sleep(0.01)
        caller.left.set()
        await asking
        assert b"".join(caller.sent).count(b"\n") > 200 * 10 - 2 * bulk_lines.WORK_LINES

    asyncio.run(run())
    server.assert_alive()


def test_a_client_that_leaves_frees_its_work_within_one_batch(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = server.model.engine.runner
    run_batch = runner.run
    running, free = threading.Event(), threading.Event()
    batches = 0

    def gated(batch: Any) -> Any:
        nonlocal batches
        batches += 1
        running.set()
        assert free.wait(60)
        return run_batch(batch)

    monkeypatch.setattr(runner, "run", gated)

    async def run() -> None:
        line = json.dumps({"input": texts.ALICE, "detail": "totals"}).encode() + b"\n"
        caller = Caller(iter([line * 200]))
        caller.reads.set()
        asking = asyncio.create_task(caller.ask(server))
        while not running.is_set():
            await asyncio.sleep(0.001)
        while caller.asked < 2:
            await asyncio.sleep(0.001)
        caller.left.set()
        while server.model.engine.due:
            await asyncio.sleep(0.001)
        free.set()
        await asking

    asyncio.run(run())
    scheduler = server.model.engine.loops[0].scheduler
    eventually(lambda: scheduler.idle, "an idle scheduler")
    assert batches == 1
    monkeypatch.undo()
    server.assert_alive()


def test_lines_wait_while_the_server_is_full_of_others(tiny_folder: Any) -> None:
    with serving(settings_for(tiny_folder, max_queue_seconds=0.5)) as server:
        with crowded(server, 50, 1.0, bulk=50):
            found: list[dict[str, Any]] = []
            asking = threading.Thread(
                target=lambda: found.extend(answers(server, {"input": "Alice"}))
            )
            asking.start()
            asking.join(0.5)
            assert asking.is_alive()
            assert not found
        asking.join()
        assert found[-1]["errors"] == 0


def test_a_server_that_stops_says_so_instead_of_the_summary(tiny_folder: Any) -> None:
    with serving(settings_for(tiny_folder)) as server:
        found: list[bytes] = []
        line = json.dumps({"input": texts.ALICE, "detail": "totals"}).encode() + b"\n"

        def lines() -> Iterator[bytes]:
            yield line * 300
            server.app.state.catalog.get(None).engine.stop()
            yield line * 300

        response = server.client.post(PATH, content=lines())
        found = response.content.splitlines()
        last = json.loads(found[-1])
        assert "index" not in last
        assert last["error"]["code"] == "not_ready"
        assert [json.loads(one)["index"] for one in found[:-1]] == list(range(len(found) - 1))


def test_an_engine_that_fails_costs_the_lines_of_its_batch(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = server.model.engine.runner
    run_batch = runner.run

    def fails(batch: Any) -> Any:
        if 399 in batch.tokens:
            raise RuntimeError("a token that it does not like")
        return run_batch(batch)

    monkeypatch.setattr(runner, "run", fails)
    bad = server.model.token_string(399)
    lines = [{"input": bad if n == 7 else "a b c", "detail": "totals"} for n in range(20)]
    assert server.model.tokenizer.encode(bad).ids.tolist()[0] == 399
    lines[7]["input"] = bad + bad  # the last token of a text is never read
    *found, summary = answers(server, *lines)
    monkeypatch.undo()
    assert [one["index"] for one in found] == list(range(20))
    assert [n for n, one in enumerate(found) if "error" in one] == [7]
    assert found[7]["error"]["code"] == "engine_error"
    assert summary["errors"] == 1


BREAKS = "one\u2028two\u2029three\x85four"
"""Where `str.splitlines` breaks lines, and so clients that use it."""


def test_a_client_that_knows_more_line_breaks_gets_whole_lines(server: Server) -> None:
    words = [BREAKS] * 5_000  # a line that is written in parts
    bodies: list[dict[str, Any]] = [
        {"input": [5, 6], "custom_id": BREAKS, "words": True},
        {"input": BREAKS, "words": True},
        {"input": " ".join(words), "custom_id": "long"},
        {"input": "a", "custom_id": BREAKS, BREAKS: 1},
    ]
    content = b"\n".join(json.dumps(body, ensure_ascii=False).encode() for body in bodies)
    with server.client.stream("POST", PATH, content=content) as response:
        found = [json.loads(line) for line in response.iter_lines()]
    assert [line.get("custom_id") for line in found] == [BREAKS, None, "long", BREAKS, None]
    assert "".join(found[1]["data"][0]["tokens"]) == BREAKS
    assert "".join(found[2]["data"][0]["tokens"]) == bodies[2]["input"]
    assert BREAKS in found[3]["error"]["message"]


def test_null_is_the_default_of_a_batch_line_too(server: Server) -> None:
    line = {"custom_id": None, "method": None, "url": None, "body": {"input": "a"}}
    found, _ = answers(server, line)
    assert found == alone(server, 0, None, input="a")


def test_openapi_describes_the_lines(server: Server) -> None:
    schema = server.client.get("/openapi.json").json()
    operation = schema["paths"][PATH]["post"]
    assert set(operation["requestBody"]["content"]) == {"application/x-ndjson"}
    assert set(operation["responses"]["200"]["content"]) == {"application/x-ndjson"}
    assert operation["parameters"][0]["name"] == "order"
