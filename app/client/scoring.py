"""Scores many texts through POST /v1/score, and reads the files that evaluations come in."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal, TypeVar

import httpx
from pydantic import ValidationError

from app.client.client import root_of
from app.client.errors import ClientError
from app.client.files import Source
from app.client.retries import BUSY, pause_seconds
from app.wire.score import ScoreRequest, ScoreResponse, TextScore

Item = TypeVar("Item")
Progress = Callable[[int], object]
"""Is told how many more texts, pairs or passages are done."""


def unheard(count: int) -> None:
    """Progress that nobody watches."""


def connect(url: str) -> httpx.AsyncClient:
    """A client of the server at `url`, without the environment's proxies. Raises ClientError."""
    return httpx.AsyncClient(
        base_url=root_of(url),
        timeout=httpx.Timeout(600.0, connect=10.0),  # a batch may wait behind others' work
        trust_env=False,
    )


async def score(
    client: httpx.AsyncClient,
    texts: Iterable[str],
    *,
    detail: Literal["tokens", "totals"] = "tokens",
    top_logprobs: int = 0,
    batch_texts: int = 64,
    max_in_flight: int = 4,
    max_attempts: int = 10,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> AsyncGenerator[TextScore]:
    """Scores of texts in their order, `index` counting all of them.

    batch_texts: texts of a request. max_in_flight: requests that are not yet answered.
    max_attempts: tries of a request that is answered with 429 or 503, each after the pause in
    seconds that `retry-after` names (at most 120), or a second. Close the generator to drop what
    is in flight. Raises ClientError.
    """
    waiting = _batches(texts, batch_texts)
    running: deque[asyncio.Task[ScoreResponse]] = deque()
    done = 0
    try:
        while True:
            for batch in islice(waiting, max_in_flight - len(running)):
                body = ScoreRequest(input=batch, detail=detail, top_logprobs=top_logprobs)
                running.append(asyncio.create_task(_ask(client, body, max_attempts, sleep)))
            if not running:
                return
            answer = await running.popleft()
            for found in answer.data:
                found.index = done
                done += 1
                yield found
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _ask(
    client: httpx.AsyncClient,
    body: ScoreRequest,
    max_attempts: int,
    sleep: Callable[[float], Awaitable[object]],
) -> ScoreResponse:
    for attempt in range(1, max_attempts + 1):
        try:
            response = await client.post("/v1/score", content=body.model_dump_json())
        except httpx.TransportError as error:
            raise ClientError(
                f"no answer from {client.base_url}: {error or type(error).__name__}; "
                "`convlm serve` starts a server"
            ) from None
        if response.status_code not in BUSY:
            break
        if attempt < max_attempts:
            await sleep(pause_seconds(response))
    if response.status_code != 200:
        raise ClientError(f"{response.url} answers {response.status_code}: {_message(response)}")
    try:
        answer = ScoreResponse.model_validate_json(response.content)
    except ValidationError:
        raise ClientError(f"{response.url} gives no scores; is it convlm's?") from None
    if [found.index for found in answer.data] != list(range(len(body.input))):
        raise ClientError(f"{response.url} gives not one score for each text")
    return answer


def _message(response: httpx.Response) -> str:
    """An error's message, on one line."""
    try:
        text = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        text = response.reason_phrase
    return " ".join(text.split())


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    rest = iter(texts)
    while batch := list(islice(rest, size)):
        yield batch


def read_lines(source: Source) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 file that are not blank, with their numbers from 1. Raises ClientError."""
    for number, line in enumerate(source.lines(), 1):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise ClientError(f"{source.name}, line {number}: not UTF-8: {error}") from None
        if text.strip():
            yield number, text


def spread(items: Sequence[Item], limit: int | None) -> Sequence[Item]:
    """At most `limit` items, evenly spread over all, so that each part of a file has its share."""
    if limit is None or limit >= len(items):
        return items
    return [items[place * len(items) // limit] for place in range(limit)]
