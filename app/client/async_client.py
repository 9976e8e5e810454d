"""The client for asyncio: the same methods as `client.Client`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from itertools import islice
from typing import Any, Self, TypeVar

import httpx

from app.client import bulk, calls
from app.client.bulk import Answer, Line, Window
from app.client.calls import Call
from app.client.client import URL, connection
from app.client.errors import Failure, Retries, unreachable
from app.wire.bulk import BulkError, BulkScore
from app.wire.completions import CompletionResponse
from app.wire.models import Model
from app.wire.next import NextResponse
from app.wire.score import ScoreResponse

Result = TypeVar("Result")


class AsyncClient:
    """Like `client.Client`, but its methods are awaited; close the generators."""

    def __init__(
        self,
        url: str = URL,
        *,
        max_attempts: int = 5,
        timeout_seconds: float = 600.0,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.max_attempts, self._sleep = max_attempts, sleep
        self.http = httpx.AsyncClient(**connection(url, timeout_seconds), transport=transport)

    async def score(self, texts: str | Sequence[str], **options: Any) -> ScoreResponse:
        """Log-probabilities of a text or texts."""
        return await self._ask(calls.score(texts, options))

    async def next(self, text: str | Sequence[int], **options: Any) -> NextResponse:
        """The most probable tokens after a text or ids (`top_k`), or `candidates` ranked."""
        return await self._ask(calls.next_tokens(text, options))

    async def complete(
        self, prompt: str | Sequence[Any] = "", **options: Any
    ) -> CompletionResponse:
        """The continuation of a prompt or prompts."""
        return await self._ask(calls.complete(prompt, options))

    async def stream(
        self, prompt: str | Sequence[Any] = "", **options: Any
    ) -> AsyncGenerator[CompletionResponse]:
        """The same in chunks, as it is generated. Once it has begun it is not retried."""
        call = calls.complete(prompt, options, stream=True)
        retries = Retries(self.max_attempts, self.http.base_url)
        begun = False
        while True:
            try:
                async with self.http.stream(
                    call.method, call.path, content=call.content
                ) as response:
                    if response.status_code == 200:
                        begun = True
                        async for line in response.aiter_lines():
                            for chunk in calls.chunk_of(line):
                                yield chunk
                        return
                    await response.aread()
                    await self._sleep(retries.pause(response, repeatable=False))
            except httpx.TransportError as error:
                if begun:
                    raise unreachable(error, self.http.base_url) from None
                await self._sleep(retries.pause(error, repeatable=False))

    async def models(self) -> list[Model]:
        """The models that the server has."""
        return await self._ask(calls.models())

    async def post(
        self, path: str, body: Mapping[str, Any], *, repeatable: bool = False
    ) -> dict[str, Any]:
        """The answer to any body. repeatable: whether it is sent again if the connection breaks."""
        return await self._ask(calls.post(path, body, repeatable=repeatable))

    async def score_lines(
        self, lines: Iterable[Line], *, max_in_flight: int = bulk.MAX_IN_FLIGHT, **options: Any
    ) -> AsyncGenerator[BulkScore | BulkError]:
        """Scores of any number of texts in their order; see `client.Client.score_lines`."""
        async with aclosing(self.answers(lines, max_in_flight=max_in_flight, **options)) as answers:
            async for answer in answers:
                yield bulk.parse(answer)

    async def answers(
        self, lines: Iterable[Line], *, max_in_flight: int = bulk.MAX_IN_FLIGHT, **options: Any
    ) -> AsyncGenerator[Answer]:
        """Like `score_lines`, but each answer as a dictionary."""
        waiting = bulk.windows(lines, options)
        running: deque[tuple[Window, asyncio.Task[None]]] = deque()
        try:
            while True:
                for window in islice(waiting, max_in_flight - len(running)):
                    running.append((window, asyncio.create_task(self._answer(window))))
                if not running:
                    return
                window, task = running[0]
                await asyncio.wait({task})
                for answer in window.answers:  # also before an error is raised
                    yield answer
                running.popleft()[1].result()
        finally:
            for _, task in running:
                task.cancel()
            await asyncio.gather(*(task for _, task in running), return_exceptions=True)

    async def close(self) -> None:
        """Closes the connections."""
        await self.http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _ask(self, call: Call[Result]) -> Result:
        retries = Retries(self.max_attempts, self.http.base_url)
        while True:
            try:
                response = await self.http.request(call.method, call.path, content=call.content)
            except httpx.TransportError as error:
                await self._sleep(retries.pause(error, repeatable=call.repeatable))
                continue
            if response.status_code == 200:
                return call.read(response.content)
            await self._sleep(retries.pause(response, repeatable=call.repeatable))

    async def _answer(self, window: Window) -> None:
        retries = Retries(self.max_attempts, self.http.base_url)
        while not window.answered:
            before = len(window.answers)
            failure: Failure
            try:
                async with self.http.stream(
                    "POST", bulk.PATH, content=window.content()
                ) as response:
                    failure = response
                    if response.status_code != 200:
                        await response.aread()
                    else:
                        async for part in response.aiter_bytes():
                            window.feed(part)
                        failure = window.end()
            except httpx.TransportError as error:
                failure = error
            if len(window.answers) > before:
                retries.succeeded()
            if not window.answered:
                await self._sleep(retries.pause(failure, repeatable=True))
