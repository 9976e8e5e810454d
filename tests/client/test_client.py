"""The client of either kind: typed answers, errors that say what is wrong, careful tries."""

from __future__ import annotations

import asyncio
import inspect
import json
import pickle
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest

from app.client import bulk
from app.client.async_client import AsyncClient
from app.client.client import Client
from app.client.errors import ApiError, ClientError, UnreachableError
from app.wire.bulk import BulkError, BulkScore
from tests.api.conftest import PATIENCE_SECONDS, Server

Handler = Callable[[httpx.Request], httpx.Response]


class Either:
    """Both clients behind the sync one's methods, so that one test holds for both."""

    def __init__(self, kind: str, url: str, handler: Handler | None, **options: Any) -> None:
        transport = None if handler is None else httpx.MockTransport(handler)
        self.pauses: list[float] = []
        self.client: Client | AsyncClient
        if kind == "sync":
            self.client = Client(url, transport=transport, sleep=self.pauses.append, **options)
        else:
            self.client = AsyncClient(url, transport=transport, sleep=self._noted, **options)

    async def _noted(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.client, name)

        async def awaited(*args: Any, **options: Any) -> Any:
            found = method(*args, **options)
            if inspect.isawaitable(found):
                return await found
            if isinstance(found, AsyncIterator):
                return [item async for item in found]
            return list(found) if isinstance(found, Iterator) else found

        async def once(*args: Any, **options: Any) -> Any:
            try:
                return await awaited(*args, **options)
            finally:
                closed = self.client.close()
                if inspect.isawaitable(closed):
                    await closed

        return lambda *args, **options: asyncio.run(once(*args, **options))


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which client."""
    return str(request.param)


def test_answers_of_a_live_server_are_typed(server: Server, kind: str) -> None:
    def ask(name: str, *args: Any, **options: Any) -> Any:
        return getattr(Either(kind, server.url, None), name)(*args, **options)

    scored = ask("score", ["Alice was", "b"], top_logprobs=1)
    expected = server.ask("/v1/score", input=["Alice was", "b"], top_logprobs=1)
    assert scored.model_dump(mode="json", exclude_unset=True) == expected
    assert [one.token for one in ask("next", "Alice", top_k=3).data] == [
        one["token"] for one in server.ask("/v1/next", input="Alice", top_k=3)["data"]
    ]
    assert len(ask("next", "Alice", candidates=[" was", " is"]).data) == 2
    whole = ask("complete", "Alice", max_tokens=20, seed=3)
    chunks = ask("stream", "Alice", max_tokens=20, seed=3)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert [model.id for model in ask("models")] == ["tiny"]
    assert ask("post", "/v1/next", {"input": "a", "top_k": 1})["model"] == "tiny"


def test_an_error_says_status_field_and_code(server: Server, kind: str) -> None:
    with pytest.raises(ApiError, match="top_logprobs: over the limit") as caught:
        Either(kind, server.url, None).score("a", top_logprobs=99)
    error = caught.value
    assert (error.status, error.field, error.code) == (413, "top_logprobs", "request_too_large")
    assert pickle.loads(pickle.dumps(error)).field == "top_logprobs"
    with pytest.raises(ApiError) as caught:
        Either(kind, server.url, None).stream("a", max_tokens=-1)
    assert (caught.value.status, caught.value.field) == (400, "max_tokens")


@pytest.mark.parametrize("given", [b"The cat", bytearray(b"a"), {1, 2}, {"input": "a"}])
def test_what_is_neither_text_nor_list_is_refused(server: Server, kind: str, given: Any) -> None:
    ask = Either(kind, server.url, None)
    for method in (ask.score, ask.next, ask.complete):
        with pytest.raises(TypeError, match=type(given).__name__):
            method(given)


@pytest.mark.parametrize("lines", ["a text", b"a text", {"input": "a text"}])
def test_a_single_line_is_not_taken_for_lines(server: Server, kind: str, lines: Any) -> None:
    with pytest.raises(TypeError, match="lines are a list"):
        Either(kind, server.url, None).score_lines(lines)


def test_chunks_are_not_asked_for_by_an_option(server: Server, kind: str) -> None:
    with pytest.raises(TypeError, match="stream"):
        Either(kind, server.url, None).complete("a", stream=True)


def test_options_are_for_the_body_of_openais_batch_line(server: Server, kind: str) -> None:
    batch = {"custom_id": "x", "url": "/v1/score", "body": {"input": "a b", "words": True}}
    (found,) = Either(kind, server.url, None).score_lines([batch], detail="totals")
    assert found.custom_id == "x"
    assert found.data[0].words
    assert found.data[0].tokens is None


def test_an_answer_that_is_late_is_said_to_be(kind: str) -> None:
    def late(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("timed out", request=request)

    with pytest.raises(ClientError, match="in time") as caught:
        Either(kind, "http://test", late).score("a")
    assert "convlm serve" not in str(caught.value)


def test_a_surrogate_is_the_servers_to_refuse(server: Server, kind: str) -> None:
    with pytest.raises(ApiError) as caught:
        Either(kind, server.url, None).score("a\ud800")
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


def test_lines_are_scored_in_order_whatever_is_wrong_with_some(server: Server, kind: str) -> None:
    lines: list[Any] = [f"Alice was number {n}" for n in range(700)]
    lines[3], lines[5], lines[650] = {"input": 3, "custom_id": "x"}, "a\ud800", b"no JSON"
    found = Either(kind, server.url, None).score_lines(iter(lines), detail="totals")
    assert [one.index for one in found] == list(range(700))
    assert [n for n, one in enumerate(found) if isinstance(one, BulkError)] == [3, 5, 650]
    assert found[3].custom_id == "x"
    for n in (0, 200, 699):
        alone = server.ask("/v1/score", input=lines[n], detail="totals")
        assert isinstance(found[n], BulkScore)
        assert found[n].data[0].logprob_sum == alone["data"][0]["logprob_sum"]


MODELS = {"object": "list", "data": []}


def failing(*failures: Any) -> tuple[Handler, list[httpx.Request]]:
    """A server that fails so, one after the other, and then answers; and what it was asked."""
    asked: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if len(asked) > len(failures):
            return httpx.Response(200, json=MODELS)
        failure = failures[len(asked) - 1]
        if isinstance(failure, Exception):
            raise failure
        status, after = failure
        headers = {} if after is None else {"retry-after": str(after)}
        return httpx.Response(status, headers=headers, json={"error": {"message": "busy"}})

    return handler, asked


def test_a_busy_or_unreachable_server_is_asked_again(kind: str) -> None:
    handler, asked = failing(
        (503, 7), (429, None), httpx.ConnectError("no"), httpx.ReadError("broke")
    )
    either = Either(kind, "http://test", handler)
    assert either.models() == []
    assert either.pauses == [7, 1, 2, 4]
    assert len(asked) == 5


@pytest.mark.parametrize("status", [400, 404, 413, 500, 504])
def test_other_errors_are_not_tried_again(kind: str, status: int) -> None:
    handler, asked = failing((status, 0))
    with pytest.raises(ApiError) as caught:
        Either(kind, "http://test", handler).models()
    assert caught.value.status == status
    assert len(asked) == 1


@pytest.mark.parametrize("name", ["complete", "stream"])
def test_what_may_have_begun_is_repeated_only_if_it_gives_the_same(kind: str, name: str) -> None:
    handler, asked = failing(httpx.ConnectError("no"), httpx.ReadError("broke"))
    with pytest.raises(UnreachableError, match="broke"):
        getattr(Either(kind, "http://test", handler), name)("a")
    assert len(asked) == 2
    handler, asked = failing(httpx.ReadTimeout("slow"))
    with pytest.raises(UnreachableError, match="in time"):
        Either(kind, "http://test", handler).models()
    assert len(asked) == 1


def test_no_try_is_made_that_the_server_calls_vain(kind: str) -> None:
    asked: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        headers = {"retry-after": "120", "x-should-retry": "false"}
        return httpx.Response(503, headers=headers, json={"error": {"message": "busy"}})

    with pytest.raises(ApiError, match="busy"):
        Either(kind, "http://test", handler).models()
    assert len(asked) == 1


def test_tries_end(kind: str) -> None:
    handler, asked = failing(*[(503, 0)] * 9)
    with pytest.raises(ApiError, match="busy"):
        Either(kind, "http://test", handler, max_attempts=3).models()
    assert len(asked) == 3


def test_a_stream_that_fails_says_so(kind: str) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        error = {"error": {"message": "the engine failed", "code": "engine_error"}}
        return httpx.Response(200, text=f"data: {json.dumps(error)}\n\ndata: [DONE]\n\n")

    with pytest.raises(ApiError, match="the engine failed") as caught:
        Either(kind, "http://test", handler).stream("a")
    assert caught.value.code == "engine_error"


@pytest.mark.parametrize("body", [b"hello", b"[]", b'{"data": 3}'])
def test_an_answer_that_is_none_is_refused(kind: str, body: bytes) -> None:
    with pytest.raises(ClientError, match="is the server convlm's"):
        Either(kind, "http://test", lambda _: httpx.Response(200, content=body)).models()


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:port", "http://127.0.0.1:99999", "127.0.0.1:8000", "ftp://a", ""]
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    for made in (Client, AsyncClient):
        with pytest.raises(ClientError, match="is not a valid address"):
            made(address)


class Bulk:
    """A bulk endpoint that answers at most so many lines of a request, and then ends it so."""

    def __init__(self, most: int, last: bytes) -> None:
        self.most, self.last = most, last
        self.scored: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        lines = [json.loads(line) for line in request.content.splitlines()]
        rows = [{"index": n, "custom_id": None, "data": []} for n in range(len(lines))]
        some = rows[: self.most]
        self.scored += [line["input"] for line in lines[: self.most]]
        raw = [json.dumps(row).encode() + b"\n" for row in some]
        summary = b'{"object":"summary","lines":0,"errors":0,"tokens":0}\n'
        raw.append(summary if len(some) == len(lines) else self.last)
        return httpx.Response(200, content=b"".join(raw))


@pytest.mark.parametrize(
    "last", [b"", b'{"index":3,"cust', b'{"error":{"message":"stops","code":"not_ready"}}\n']
)
def test_answers_that_break_off_are_gone_on_with_behind_the_last(kind: str, last: bytes) -> None:
    server = Bulk(60, last)
    texts = [f"text {n}" for n in range(450)]
    either = Either(kind, "http://test", server)
    assert [one["index"] for one in either.answers(texts, max_in_flight=1)] == list(range(450))
    assert server.scored == texts
    assert len(either.pauses) == 3 + 3


def test_what_came_before_the_last_try_is_given(kind: str) -> None:
    answered = 0

    def handler(request: httpx.Request) -> httpx.Response:
        nonlocal answered
        answered += 1
        if answered == 1:
            return Bulk(60, b"")(request)
        return httpx.Response(503, json={"error": {"message": "full"}})

    client = Either(kind, "http://test", handler, max_attempts=2).client
    found: list[int] = []

    async def collect() -> None:
        answers = client.answers([f"text {n}" for n in range(100)])
        if isinstance(answers, AsyncIterator):
            async for answer in answers:
                found.append(answer["index"])
        else:
            found.extend(answer["index"] for answer in answers)

    with pytest.raises(ApiError, match="full"):
        asyncio.run(collect())
    assert found == list(range(60))


@pytest.mark.parametrize("raw", [b"no\n", b'{"index":1}\n', b"[]\n", b'{"object":"summary"}\n'])
def test_an_answer_to_another_line_is_refused(kind: str, raw: bytes) -> None:
    with pytest.raises(ClientError, match=r"is (it|the server) convlm's"):
        Either(kind, "http://test", lambda _: httpx.Response(200, content=raw)).answers(["a"])


def test_windows_are_bounded_and_lines_are_taken_as_needed() -> None:
    taken = 0

    def lines() -> Iterator[str]:
        nonlocal taken
        for _ in range(100_000):
            taken += 1
            yield "a"

    first = next(bulk.windows(lines(), {}))
    assert len(first.lines) == bulk.WINDOW_LINES
    assert taken == bulk.WINDOW_LINES + 1
    long = ["a" * bulk.WINDOW_BYTES, "b", "c" * bulk.WINDOW_BYTES]
    assert [w.first for w in bulk.windows(long, {})] == [0, 1, 2]


def test_answers_can_be_left_while_the_server_is_silent() -> None:
    answers, released = Bulk(200, b""), threading.Event()
    asked = 0

    def handler(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        if json.loads(request.content.splitlines()[0])["input"] != "0":
            released.wait(PATIENCE_SECONDS)
            return httpx.Response(503, json={"error": {"message": "full"}})
        return answers(request)

    transport = httpx.MockTransport(handler)
    with Client("http://test", transport=transport, sleep=lambda _: None) as client:
        lines = client.answers([str(n) for n in range(1000)])
        assert next(lines)["index"] == 0
        lines.close()  # without waiting for the others
        assert not released.is_set()
        begun = asked
        released.set()
        for thread in threading.enumerate():
            if thread.name == "convlm-window":
                thread.join(PATIENCE_SECONDS)
    assert asked == begun  # nothing is tried again for a reader who has left


def test_a_line_that_the_engine_failed_in_is_answered_and_the_rest_is_asked_for() -> None:
    failed = b'{"input": "b", "custom_id": "x"}\n'
    window = bulk.Window(5, [b"a", failed, b"c"])
    assert window.content() == b"a" + failed + b"c"
    error = b'{"error": {"message": "m", "type": "server_error", "param": null, "code": '
    window.feed(b'{"index": 0}\n{"index": 1, "tok\n' + error + b'"engine_error"}}\n')
    assert isinstance(window.end(), httpx.RemoteProtocolError)
    assert [answer["index"] for answer in window.answers] == [5, 6]
    assert isinstance(bulk.parse(window.answers[1]), BulkError)
    assert window.answers[1]["custom_id"] == "x"
    assert window.content() == b"c"
    window.feed(b"torn\n" + error + b'"not_ready"}}\n')
    window.end()
    assert window.content() == b"c"
    window.feed(b'{"index": 0}\n{"object": "summary"}\n')
    window.end()
    assert window.answered
