"""Long bodies: counted before they are parsed, parsed in slices, and bounded all together."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from urllib.parse import urlparse

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json

from app.api.bulk_pipeline import Bulk
from app.api.http import body as bodies
from app.api.http import json_slices
from app.api.http.json_counts import JsonCounts
from app.api.http.json_slices import load
from app.api.http.open_bodies import OpenBodies, OpenBody
from app.errors import OverloadError
from app.wire.score import ScoreRequest
from tests.api.conftest import Server, eventually, serving, settings_for

SCORE, NEXT, COMPLETIONS, RESCORE = "/v1/score", "/v1/next", "/v1/completions", "/v1/rescore"
BULK = "/v1/score/stream"
TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('[]{}",:\\/\n'))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=20,
)
DOCUMENTS = st.dictionaries(TEXT, VALUES) | st.lists(VALUES)
LAYOUTS = st.fixed_dictionaries(
    {"ensure_ascii": st.booleans(), "indent": st.sampled_from([None, 1])}
)


# Counts


def counted(value: Any) -> tuple[int, int]:
    """Strings, lists and objects of a value, and the commas between its entries."""
    if isinstance(value, str):
        return 1, 0
    if not isinstance(value, list | dict):
        return 0, 0
    entries = [*value, *value.values()] if isinstance(value, dict) else value
    inner = [counted(entry) for entry in entries]
    parts, commas = (sum(column) for column in zip(*inner, strict=True)) if inner else (0, 0)
    return parts + 1, commas + max(0, len(value) - 1)


@given(DOCUMENTS, LAYOUTS, st.lists(st.integers(0, 400)))
def test_what_is_counted_is_what_the_parser_makes_wherever_it_is_cut(
    value: Any, layout: dict[str, Any], cuts: list[int]
) -> None:
    raw = json.dumps(value, **layout).encode()
    counts = JsonCounts()
    edges = [0, *sorted(cuts), len(raw)]
    for first, last in pairwise(edges):
        counts.feed(raw[first:last])
    assert (counts.parts, counts.commas) == counted(value)
    assert not counts.long_number


@pytest.mark.parametrize("digits", [3, 512, 2048, 100_000])
@pytest.mark.parametrize("before", [b"", b'"' + b"7" * 5000 + b'",'])
def test_a_number_that_takes_long_to_read_is_noticed(digits: int, before: bytes) -> None:
    counts = JsonCounts()
    counts.feed(b"[" + before + b"7" * digits + b"]")
    assert counts.long_number == (digits >= 2048)


# Slices


def outcome(parse: Any, *args: Any) -> str:
    try:
        return repr(parse(*args))
    except ValueError:
        return "not JSON"


@given(DOCUMENTS, LAYOUTS, st.integers(16, 60))
def test_a_value_is_the_same_from_slices_of_any_length(
    value: Any, layout: dict[str, Any], slice_bytes: int
) -> None:
    raw = json.dumps(value, **layout).encode()
    assert load(raw, slice_bytes) == from_json(raw)


@given(DOCUMENTS, st.integers(0), st.binary(max_size=2), st.integers(0, 3), st.integers(16, 60))
def test_mistakes_are_noticed_in_slices_too(
    value: Any, at: int, inserted: bytes, deleted: int, slice_bytes: int
) -> None:
    raw = json.dumps(value, ensure_ascii=False).encode()
    at %= len(raw) + 1
    raw = raw[:at] + inserted + raw[at + deleted :]
    if raw.lstrip(b" \t\n\r")[:1] in (b"[", b"{"):
        assert outcome(load, raw, slice_bytes) == outcome(from_json, raw)


@given(st.text(st.sampled_from('[]{}",:\\u1ad8 e'), max_size=30), st.integers(16, 30))
def test_what_looks_like_json_is_read_as_the_parser_reads_it(text: str, slice_bytes: int) -> None:
    for raw in (f"[{text}]", f'{{"a":{text}}}', f'["{text}"]', f'["{text}'):
        raw_bytes = raw.encode()
        assert outcome(load, raw_bytes, slice_bytes) == outcome(from_json, raw_bytes)


@pytest.mark.parametrize("empty", [b"[%b]", b"{%b}", b"[[%b],1]", b'{"a":{%b}}', b"[%b,]", b"[%b"])
def test_an_empty_list_may_go_on_after_a_slice(empty: bytes) -> None:
    for spaces in range(50):
        raw = b"[" + empty % (b" " * spaces) + b"]"
        assert outcome(load, raw, 16) == outcome(from_json, raw)


@pytest.mark.parametrize("depth", [1, 150, 199, 200, 201, 100_000])
def test_slices_are_not_nested_deeper_than_a_body_may_be(depth: int) -> None:
    inner = b"", b"{}", b"[ ]", b"{ }", b'{"a":1}'
    lists = [b"[" * depth + one + b"]" * depth for one in inner]
    for raw in (*lists, b'{"a":' + lists[0] + b"}"):
        for slice_bytes in (16, 1000):
            assert outcome(load, raw, slice_bytes) == outcome(from_json, raw)


NESTED = b"[" * 150, b"]" * 150


@pytest.mark.parametrize(
    "raw",
    [
        NESTED[0] + b'"' + b"x" * 5000 + b'"' + NESTED[1],
        b"[" + (NESTED[0] + b'"' + b"x" * 1100 + b'"' + b",1]" * 150 + b",") * 20 + b"1]",
        (b'{"a":1,"b":' * 150 + b'"' + b"x" * 5000 + b'"' + b',"c":2}' * 150),
        b"[" + b'{"a":[1,2],"b":"text"},' * 500 + b"5]",
    ],
)
def test_no_byte_is_scanned_twice_for_where_slices_may_end(
    raw: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned: list[tuple[int, int]] = []

    class Counted(json_slices._Window):
        def __init__(self, part: bytes, start: int, depth: int) -> None:
            super().__init__(part, start, depth)
            scanned.append((self.start, self.end))

    monkeypatch.setattr(json_slices, "_Window", Counted)
    assert load(raw, 1000) == from_json(raw)
    assert all(before[1] <= after[0] for before, after in pairwise(scanned))
    assert len(scanned) <= len(raw) / 500


def test_a_body_whose_request_is_gone_is_parsed_no_further(server: Server) -> None:
    all_bodies = OpenBodies(1 << 30)
    begun, free = threading.Event(), threading.Event()
    steps: list[bool] = []

    def load_slowly(raw: bytes, *, wanted: Any) -> Any:
        begun.set()
        assert free.wait(60)
        steps.append(wanted())
        return json_slices.load(raw, wanted=wanted)

    async def check() -> None:
        raw = long(b'{"input": "a"}')
        parse = bodies.parse(ScoreRequest, raw, server.model.settings, all_bodies, int)
        asking = asyncio.create_task(parse)
        while not begun.is_set():
            await asyncio.sleep(0.001)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        free.set()
        last = asyncio.get_running_loop().run_in_executor(all_bodies.parser, int)
        await last  # the parser goes on with others
        assert steps == [False]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bodies, "load", load_slowly)
        asyncio.run(check())
    with pytest.raises(json_slices.UnwantedError):
        load(b'["a"]', wanted=lambda: False)


def test_a_client_that_leaves_and_a_deadline_end_the_parsing_of_a_body(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []

    def load_on_and_on(raw: bytes, *, wanted: Any) -> Any:
        ended.append("begun")
        while wanted():
            time.sleep(0.001)
        ended.append("ended")
        raise json_slices.UnwantedError

    monkeypatch.setattr(bodies, "load", load_on_and_on)
    raw = long(b'{"input": "a"}')
    response = server.client.post(SCORE, content=raw, headers={"x-request-timeout-ms": "50"})
    assert response.json()["error"]["code"] == "timeout"
    eventually(lambda: ended == ["begun", "ended"], "a parser that leaves off")
    url = urlparse(server.url)
    with socket.create_connection((url.hostname, url.port), timeout=60) as connection:
        head = f"POST {SCORE} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(raw)}\r\n\r\n"
        connection.sendall(head.encode() + raw)
        eventually(lambda: len(ended) == 3, "a parser at work")
    eventually(lambda: len(ended) == 4, "a parser that leaves off")


# Answers


def long(raw: bytes) -> bytes:
    """The same JSON, so long that it is parsed in slices."""
    return b" " * (1 << 18) + raw


WRONG: list[tuple[str, bytes]] = [
    (SCORE, b"[1]"),
    (SCORE, b'"a"'),
    (SCORE, b"{}"),
    (SCORE, b'{"input": [1, "a"]}'),
    (SCORE, b'{"input": ["a", 1], "x": 1}'),
    (SCORE, b'{"input": "a", "top_logprobs": "1"}'),
    (SCORE, b'{"input": "a", "input": 5}'),
    (SCORE, b'{"input": "a"'),
    (SCORE, b'{"input": "\\ud800"}'),
    (SCORE, b'{"input": "a",}'),
    (SCORE, b'{"input": "\xff"}'),
    (SCORE, b'{"input": [' + b"1," * 70_000 + b"-1]}"),
    (SCORE, b'{"input": "a", "context": [' + b"1," * 70_000 + b"1000000]}"),
    (SCORE, b'{"input": ' + b"[" * 300 + b"]" * 300 + b"}"),
    (NEXT, b'{"input": "a", "candidates": []}'),
    (RESCORE, b'{"utterances": [{"hypotheses": ["a", {"text": "b", "prior": 1}]}]}'),
    (RESCORE, b'{"utterances": [{"hypotheses": [{"text": "b", "x": 1}]}]}'),
    (COMPLETIONS, b'{"prompt": "a", "stream": true, "stream_options": 5}'),
    (COMPLETIONS, b'{"prompt": "a", "temperature": NaN}'),
    (COMPLETIONS, b'{"prompt": "a", "stop": ["a", 1]}'),
    (COMPLETIONS, b'{"prompt": "a", "logit_bias": {"-1": 1}}'),
]


@pytest.mark.parametrize(("path", "raw"), WRONG)
def test_a_long_body_is_refused_for_the_same_field_and_reason_as_a_short_one(
    server: Server, path: str, raw: bytes
) -> None:
    short, same = (server.client.post(path, content=one) for one in (raw, long(raw)))
    assert (same.status_code, same.json()["error"].keys()) == (400, short.json()["error"].keys())
    if short.json()["error"]["code"] == "invalid_json":  # the parser's words are about its slice
        assert same.json()["error"]["code"] == "invalid_json"
    else:
        assert same.json() == short.json()


def test_a_long_body_has_the_same_answer_as_a_short_one(server: Server) -> None:
    for path, body in (
        (SCORE, {"input": ["Alice", 'é\n"[{'], "context": [5, 6.0], "top_logprobs": 2}),
        (RESCORE, {"utterances": [{"hypotheses": ["a", "b"]}, {"hypotheses": [{"text": "c"}]}]}),
        (NEXT, {"input": [5, 6], "candidates": None}),
    ):
        raw = json.dumps(body).encode()
        short, same = (server.client.post(path, content=one) for one in (raw, long(raw)))
        assert short.status_code == 200
        assert same.json() == short.json()


def test_all_hypotheses_that_a_request_may_have_are_ranked(server: Server) -> None:
    utterance = {"hypotheses": [{"text": f"a{n}", "prior": -1.5} for n in range(16)]}
    answer = server.ask(RESCORE, utterances=[utterance] * 1024)
    assert [len(one["hypotheses"]) for one in answer["data"]] == [16] * 1024
    several = [{"hypotheses": [""] * 16_385}]
    refused = server.post(RESCORE, utterances=several, add_eos=True).json()["error"]
    assert "max_request_hypotheses, 16384: 16385" in refused["message"]


def repeated(before: bytes, entry: bytes, after: bytes, size: int = 1 << 24) -> bytes:
    """A body of about so many bytes."""
    return before + entry * ((size - len(before) - len(after)) // len(entry)) + after


TEXTS, NUMBERS = "max_request_texts", "max_request_tokens, 1000000"
HOSTILE: dict[str, tuple[str, bytes, str]] = {
    "utterances": (RESCORE, repeated(b'{"utterances":[', b'{"hypotheses":["a","b"]},', b"]}"),
                   "max_request_hypotheses, 16384"),
    "lists": (SCORE, repeated(b'{"input":[', b"[[]],", b"[]]}"), TEXTS),
    "texts": (SCORE, repeated(b'{"input":[', b'"a",', b'"a"]}'), TEXTS),
    "ids": (SCORE, repeated(b'{"input":[', b"5,", b"5]}"), NUMBERS),
    "nulls": (NEXT, repeated(b'{"input":[', b"null,", b"5]}"), NUMBERS),
    "candidates": (NEXT, repeated(b'{"input":"a","candidates":[', b'"a",', b'"a"]}'), TEXTS),
    "unknown": (COMPLETIONS, repeated(b'{"x":[', b"{},", b"{}]}"), TEXTS),
    "stops": (COMPLETIONS, repeated(b'{"stop":[', b'"",', b'""]}'), TEXTS),
    "names": (COMPLETIONS, repeated(b"{", b'"a":1,', b'"b":1}'), TEXTS),
    "tokens": ("/v1/detokenize", repeated(b'{"tokens":[', b"5,", b"5]}"), NUMBERS),
    "deep": (SCORE, b"[" * (1 << 24), TEXTS),
    "quotes": (SCORE, b'"' * (1 << 24), TEXTS),
    "digits": (SCORE, repeated(b'{"input":[', b"9" * 4000 + b",", b"1]}"), "512 digits"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_body_that_holds_more_than_any_request_is_refused_before_it_is_parsed(
    server: Server, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, raw, reason = HOSTILE[name]
    monkeypatch.setattr(bodies, "_parse_in_slices", None)
    response = server.client.post(path, content=raw)
    assert response.status_code == (400 if name == "digits" else 413)
    assert reason in response.json()["error"]["message"]
    eventually(lambda: server.app.state.open_bodies.bytes == 0, "no open bodies")


# All open bodies


def test_a_body_is_taken_while_all_together_stay_within_the_limit_or_it_is_alone() -> None:
    async def check() -> None:
        all_bodies = OpenBodies(100)
        first, second = all_bodies.open(), all_bodies.open()
        first.hold(500)  # alone
        with pytest.raises(OverloadError):
            second.hold(1)
        assert (second.bytes, all_bodies.bytes) == (0, 500)
        first.hold(60)
        second.hold(40)
        with pytest.raises(OverloadError):
            second.hold(41)
        second.hold(39)
        first.close()
        assert all_bodies.bytes == 39
        second.hold(200)

    asyncio.run(check())


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 60)), max_size=40), st.data())
def test_nothing_is_held_once_all_tasks_have_ended_however(
    steps: list[tuple[int, int]], data: st.DataObject
) -> None:
    async def check() -> None:
        all_bodies = OpenBodies(100)
        held: dict[int, OpenBody] = {}

        async def request(number: int, end: asyncio.Event, fails: bool) -> None:
            held[number] = all_bodies.open()
            await end.wait()
            if fails:
                raise ValueError

        ends = [asyncio.Event() for _ in range(5)]
        fails = [data.draw(st.booleans()) for _ in ends]
        tasks = [asyncio.create_task(request(n, *both)) for n, both in
                 enumerate(zip(ends, fails, strict=True))]  # fmt: skip
        await asyncio.sleep(0)
        for number, count in steps:
            others = sum(one.bytes for n, one in held.items() if n != number)
            try:
                held[number].hold(count)
            except OverloadError:
                assert others
                assert others + count > 100
            assert all_bodies.bytes == sum(one.bytes for one in held.values())
            assert all_bodies.bytes <= 100 or not others
        for task, end in zip(tasks, ends, strict=True):
            if data.draw(st.booleans()):
                task.cancel()
            end.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)
        assert all_bodies.bytes == 0

    asyncio.run(check())


@pytest.fixture(scope="module")
def narrow(tiny_folder: Any) -> Iterator[Server]:
    """A server that takes one body of 1 MB, and little beside it."""
    limits = {"max_open_body_bytes": 1_000_000, "max_request_bytes": 1_000_000}
    with serving(settings_for(tiny_folder, **limits)) as running:
        yield running


def opened(server: Server, path: str, sent: int) -> socket.socket:
    """A connection on which so many bytes of a longer body have been sent."""
    url = urlparse(server.url)
    connection = socket.create_connection((url.hostname, url.port), timeout=60)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 950000\r\n\r\n"
    connection.sendall(head.encode() + b'{"input":"' + b" " * (sent - 10))
    return connection


@pytest.mark.parametrize("path", [SCORE, BULK])
def test_bodies_over_the_budget_get_503_and_short_ones_are_served(
    narrow: Server, path: str
) -> None:
    held = narrow.app.state.open_bodies
    raw = b'{"detail":"totals","input":"a"' + b" " * 200_000 + b"}"
    with opened(narrow, path, 900_000):
        eventually(lambda: held.bytes >= 900_000, "an open body")
        response = narrow.client.post(SCORE, content=raw)
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert response.json()["error"]["code"] == "overloaded"
        assert "max_open_body_bytes, 1000000" in response.json()["error"]["message"]
        lines = narrow.client.post(BULK, content=raw + b"\n" + b'{"input":"b"}\n').text.splitlines()
        refused, taken, summary = map(json.loads, lines)
        assert (refused["index"], refused["error"]["code"]) == (0, "overloaded")
        assert (taken["index"], taken["usage"]["prompt_tokens"]) == (1, 1)
        assert (summary["lines"], summary["errors"]) == (2, 1)
        narrow.ask(SCORE, input="a")
    eventually(lambda: held.bytes == 0, "no open bodies")  # their client has left
    assert narrow.client.post(SCORE, content=raw).status_code == 200
    for content in (raw[:-1], raw[:-1] + b',"x":1}', b'{"x":"' + b" " * 2_000_000):
        assert narrow.client.post(SCORE, content=content).status_code in (400, 413)
    assert narrow.client.post(BULK, content=raw + b"\n" + raw[:-1]).status_code == 200
    eventually(lambda: held.bytes == 0, "no open bodies")


def test_the_values_of_a_line_are_held_until_it_is_answered(server: Server) -> None:
    ids, count = b'{"detail":"totals","input":[5%b]}\n', 60_000
    long_line = ids % (b",5" * (count - 1))

    async def check() -> None:
        all_bodies = OpenBodies(1 << 30)
        bulk = Bulk(server.app.state.catalog, all_bodies.open(), in_order=True)
        for _ in range(2):
            await bulk.feed(long_line + b'{"input":')
            await bulk.feed(b'"a","detail":"totals"}\n')
        assert all_bodies.bytes >= 2 * (len(long_line) + 64 * count)
        await bulk.end()
        lines = b"".join([part async for part in bulk.answers()]).splitlines()
        assert (len(lines), json.loads(lines[-1])["errors"]) == (5, 0)
        assert all_bodies.bytes == 0
        while server.model.engine.waiting:  # the engine still knows this event loop
            await asyncio.sleep(0.001)

    asyncio.run(check())
