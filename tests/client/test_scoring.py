"""Many texts for evaluations: in order, patient with a busy server, clear about what fails."""

from __future__ import annotations

import ast
import asyncio
import json
import lzma
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import zstandard

from app.client import bulk
from app.client.async_client import AsyncClient
from app.client.errors import ClientError
from app.client.files import Source
from app.client.scoring import read_lines, score, spread
from app.wire.bulk import BulkScore
from app.wire.score import TextScore
from tests.api.conftest import Server

pytestmark = pytest.mark.anyio
TEXTS = [f"Alice was number {number} of many" for number in range(10)]
SUMS = {
    "token_count": 1,
    "unknown_count": 0,
    "word_count": 1,
    "byte_count": 1,
    "perplexity": None,
    "word_perplexity": None,
    "bits_per_byte": None,
}
SUMMARY = b'{"object":"summary","lines":0,"errors":0,"tokens":0}\n'


@pytest.fixture(autouse=True)
def two_lines_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several requests for ten texts."""
    monkeypatch.setattr(bulk, "WINDOW_LINES", 2)


def numbers_in(request: httpx.Request) -> list[int]:
    """The number in each text of a request."""
    lines = [json.loads(line) for line in request.content.splitlines()]
    return [int(line["input"].split()[3]) for line in lines]


def answer_to(request: httpx.Request) -> httpx.Response:
    """Scores that are minus the number in each text."""
    raw = b""
    for index, number in enumerate(numbers_in(request)):
        scored = {**SUMS, "index": 0, "eos_scored": False, "logprob_sum": -float(number)}
        line = {
            "object": "list",
            "model": "fake",
            "data": [scored],
            "totals": {**SUMS, "logprob_sum": 0.0},
            "usage": {"prompt_tokens": 1, "total_tokens": 1},
            "system_fingerprint": "fp_fake",
            "index": index,
            "custom_id": None,
        }
        raw += BulkScore.model_validate(line).model_dump_json().encode() + b"\n"
    return httpx.Response(200, content=raw + SUMMARY)


Handler = Callable[[httpx.Request], httpx.Response | Awaitable[httpx.Response]]


def answered_by(handler: Handler, **options: Any) -> AsyncClient:
    """A client whose requests a function answers."""
    return AsyncClient("http://test", transport=httpx.MockTransport(handler), **options)  # type: ignore[arg-type]


async def scores(client: AsyncClient, **options: Any) -> list[TextScore]:
    """Scores of the ten texts."""
    async with client:
        return [scored async for scored in score(client, TEXTS, **options)]


async def test_a_live_server_gives_what_one_request_for_each_text_gives(server: Server) -> None:
    scored = await scores(AsyncClient(server.url), top_logprobs=1)
    for text, one in zip(TEXTS, scored, strict=True):
        (alone,) = server.ask("/v1/score", input=text, top_logprobs=1)["data"]
        assert one.tokens == alone["tokens"]
        assert one.logprobs == alone["logprobs"]
        assert one.logprob_sum == alone["logprob_sum"]
        assert one.top_logprobs is not None
        assert len(one.top_logprobs) == len(alone["tokens"])


async def test_order_is_kept_when_answers_come_in_another() -> None:
    waiting, most = 0, 0
    turns = [asyncio.Event() for _ in range(5)]
    turns[4].set()

    async def last_first(request: httpx.Request) -> httpx.Response:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        number = numbers_in(request)[0] // 2
        await turns[number].wait()
        if number:
            turns[number - 1].set()
        waiting -= 1
        return answer_to(request)

    scored = await scores(answered_by(last_first), max_in_flight=5)
    assert [-one.logprob_sum for one in scored] == list(range(10))
    assert most == 5


async def test_no_more_requests_than_allowed_are_in_flight() -> None:
    waiting, most = 0, 0

    async def slow(request: httpx.Request) -> httpx.Response:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        await asyncio.sleep(0)
        waiting -= 1
        return answer_to(request)

    assert len(await scores(answered_by(slow), max_in_flight=2)) == 10
    assert most == 2


@pytest.mark.parametrize("status", [429, 503])
async def test_a_busy_server_is_asked_again_after_the_pause_it_names(
    status: int,
) -> None:
    pauses, refusals = [], [7, 0, None, 10_000]

    async def noted(seconds: float) -> None:
        pauses.append(seconds)

    def busy(request: httpx.Request) -> httpx.Response:
        if not refusals:
            return answer_to(request)
        seconds = refusals.pop(0)
        return httpx.Response(
            status, headers={} if seconds is None else {"retry-after": str(seconds)}
        )

    scored = await scores(answered_by(busy, sleep=noted), max_in_flight=1)
    assert [-one.logprob_sum for one in scored] == list(range(10))
    assert pauses == [7, 0, 1, 120]


async def test_a_server_that_stays_busy_is_given_up() -> None:
    asked = 0

    def busy(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        error = {"error": {"message": "too much\nis waiting"}}
        return httpx.Response(503, json=error, headers={"retry-after": "0"})

    with pytest.raises(ClientError, match="too much is waiting"):
        await scores(answered_by(busy, max_attempts=3), max_in_flight=1)
    assert asked == 3


async def test_an_error_stops_the_requests_in_flight() -> None:
    begun = left = 0

    async def fails(request: httpx.Request) -> httpx.Response:
        nonlocal begun, left
        begun += 1
        if begun == 1:
            return httpx.Response(400, json={"error": {"message": "the body is bad"}})
        try:
            await asyncio.Event().wait()
        finally:
            left += 1
        raise AssertionError

    with pytest.raises(ClientError, match="the body is bad"):
        await scores(answered_by(fails), max_in_flight=3)
    assert left == begun - 1


async def test_a_text_that_cannot_be_scored_is_named(server: Server) -> None:
    with pytest.raises(ClientError, match=r"text 1: .*top_logprobs"):
        await scores(AsyncClient(server.url), top_logprobs=99)


@pytest.mark.parametrize("body", [b"hello\n", b'{"data": []}\n', b'{"object": "list", "data": [\n'])
async def test_an_answer_that_is_no_score_is_refused(body: bytes) -> None:
    with pytest.raises(ClientError, match="is the server convlm's"):
        await scores(answered_by(lambda _: httpx.Response(200, content=body)))


async def test_a_score_that_is_missing_is_noticed() -> None:
    def fewer(request: httpx.Request) -> httpx.Response:
        first, *_ = answer_to(request).content.splitlines(keepends=True)
        return httpx.Response(200, content=first + SUMMARY)

    with pytest.raises(ClientError, match="not answer every line"):
        await scores(answered_by(fewer))


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9", "127.0.0.1:8000", "http://127.0.0.1:port", "nothing"]
)
async def test_a_server_that_is_not_there_is_named(url: str) -> None:
    with pytest.raises(ClientError) as caught:
        await scores(AsyncClient(url, max_attempts=1))
    assert url in str(caught.value)


def test_lines_are_read_plain_and_packed(tmp_path: Path) -> None:
    text = "eins\n\n zwei é \u2028 \n"
    packed = {
        "a.txt": text.encode(),
        "a.txt.xz": lzma.compress(text.encode()),
        "a.txt.zst": zstandard.compress(text.encode()),
    }
    for name, raw in packed.items():
        (tmp_path / name).write_bytes(raw)
        assert list(read_lines(Source(str(tmp_path / name)))) == [
            (1, "eins"),
            (3, " zwei é \u2028 "),
        ]


@pytest.mark.parametrize(
    ("name", "raw"),
    [("a.xz", b"no"), ("b.zst", b"\x28\xb5\x2f\xfdno"), ("c.txt", b"\xff\n"), ("d.txt", None)],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, raw: bytes | None) -> None:
    if raw is not None:
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(ClientError, match=name):
        list(read_lines(Source(str(tmp_path / name))))


def test_a_limit_takes_its_share_of_every_part() -> None:
    assert list(spread(range(10), 3)) == [0, 3, 6]
    assert list(spread(range(3), 10)) == [0, 1, 2]
    assert list(spread(range(3), None)) == [0, 1, 2]


def test_the_client_knows_no_server() -> None:
    allowed = {"app.client", "app.wire", "app.text.lines", "model.core", "httpx", "pydantic"}
    folder = Path(__file__).parents[2] / "app" / "client"
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                name = node.module or ""
                ours = name.partition(".")[0] in ("app", "model")
                assert not ours or any(name.startswith(one) for one in allowed), (path, name)
            elif isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
                assert not names & {"fastapi", "onnxruntime", "numpy"}, path
