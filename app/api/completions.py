"""POST /v1/completions, in OpenAI's shape, whole or as server-sent events."""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.api import limits
from app.api.body import documented, read, unless_gone
from app.api.choice import ChoiceWriter, Delta
from app.api.errors import describe
from app.api.stream import HoldingResponse
from app.engine.loop import Caller
from app.engine.sampling import Sampling
from app.engine.sequence import Generated, Generation
from app.lm import LanguageModel, Prompt, ScoredPart
from app.settings import Settings
from app.wire.completions import CompletionRequest, CompletionResponse

router = APIRouter()
_UNSENT = 64
"""Pieces of text made ready for a slow reader; what is generated meanwhile waits as tokens."""


@router.post(
    "/v1/completions",
    summary="Complete text",
    response_model=CompletionResponse,
    openapi_extra=documented(CompletionRequest),
)
async def completions(request: Request) -> Response:
    """Text that goes on from prompts, as OpenAI's completions endpoint gives it.

    A text prompt goes on from the start symbol, which is neither listed nor counted; token ids
    are taken as they are.
    """
    catalog = request.app.state.catalog
    settings: Settings = catalog.settings
    catalog.get(None)
    body = await read(request, CompletionRequest, settings.max_request_bytes)
    ignored = len(body.model_extra or ())
    if body.stream_options is not None:
        ignored += len(body.stream_options.model_extra or ())
    request.app.state.metrics.ignored_fields.inc(ignored)
    _check_limits(body, settings)
    return await unless_gone(request, _answer(catalog.get(body.model), body))


def _check_limits(body: CompletionRequest, settings: Settings) -> None:
    choices = body.n * len(body.prompt)
    for name, value, limit in (
        ("max_tokens", body.max_tokens, "max_completion_tokens"),
        ("logprobs", body.logprobs or 0, "max_top_logprobs"),
        ("stop", len(body.stop), "max_stop_strings"),
        ("n", body.n, "max_request_texts"),
        ("n" if body.n > 1 else "prompt", choices, "max_request_texts"),
    ):
        limits.check(settings, name, value, limit)


async def _answer(model: LanguageModel, body: CompletionRequest) -> Response:
    prompts = await model.prompts(body.prompt)
    completion = _Completion(model, body, prompts)
    stack = AsyncExitStack()
    try:
        stack.enter_context(
            model.admission.admitted(completion.tokens, model.engine.tokens_per_second)
        )
        caller = await stack.enter_async_context(model.engine.caller())
        if body.stream:
            events = completion.events(caller)
            return HoldingResponse(events, "text/event-stream", stack.pop_all())
        return Response(await completion.whole(caller), media_type="application/json")
    finally:
        await stack.aclose()


@dataclass(slots=True)
class _Choice:
    """What has come of one choice."""

    text: list[str] = field(default_factory=list)
    finish: str | None = None
    logprobs: dict[str, list[Any]] | None = None


class _Completion:
    """All choices of one request."""

    def __init__(
        self, model: LanguageModel, body: CompletionRequest, prompts: Sequence[Prompt]
    ) -> None:
        self.model, self.body, self.prompts = model, body, prompts
        self.seed = secrets.randbits(63) if body.seed is None else body.seed
        self.head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": model.fingerprint,
        }
        self.prompt_tokens = sum(len(p.ids) - p.given for p in prompts)
        self.generated = 0
        self._started: dict[int, list[AsyncGenerator[ScoredPart | Generated]]] = {}

    @property
    def tokens(self) -> int:
        """Tokens that this request may cost."""
        return self.prompt_tokens + len(self.prompts) * self.body.n * self.body.max_tokens

    async def whole(self, caller: Caller) -> bytes:
        """The response's body."""
        count = len(self.prompts) * self.body.n
        choices = [_Choice() for _ in range(count)]

        async def collect(index: int) -> None:
            choice = choices[index]
            async with aclosing(self._choice(caller, index)) as deltas:
                async for delta in deltas:
                    choice.text.append(delta.text)
                    choice.finish = delta.finish
                    if delta.logprobs is not None:
                        if choice.logprobs is None:
                            choice.logprobs = delta.logprobs
                        else:
                            for name, values in delta.logprobs.items():
                                choice.logprobs[name] += values

        try:
            async with asyncio.TaskGroup() as group:
                for index in range(count):
                    group.create_task(collect(index))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        listed = [
            {
                "index": index,
                "text": "".join(choice.text),
                "logprobs": choice.logprobs,
                "finish_reason": choice.finish,
            }
            for index, choice in enumerate(choices)
        ]
        return _json({**self.head, "choices": listed, "usage": self._usage()})

    async def events(self, caller: Caller) -> AsyncGenerator[bytes]:
        """Server-sent events: a chunk for each piece of text, then [DONE]."""
        try:
            async with aclosing(self._merged(caller)) as deltas:
                async for index, delta in deltas:
                    choice = {
                        "index": index,
                        "text": delta.text,
                        "logprobs": delta.logprobs,
                        "finish_reason": delta.finish,
                    }
                    yield _event({**self.head, "choices": [choice]})
            options = self.body.stream_options
            if options is not None and options.include_usage:
                yield _event({**self.head, "choices": [], "usage": self._usage()})
        except Exception as error:  # the status is long sent; the stream says it instead
            yield _event(describe(error)[1])
        yield b"data: [DONE]\n\n"

    async def _merged(self, caller: Caller) -> AsyncGenerator[tuple[int, Delta]]:
        """Pieces of all choices as they come."""
        count = len(self.prompts) * self.body.n
        arrived: asyncio.Queue[tuple[int, Delta] | Exception | None] = asyncio.Queue(_UNSENT)

        async def follow(index: int) -> None:
            try:
                async with aclosing(self._choice(caller, index)) as deltas:
                    async for delta in deltas:
                        await arrived.put((index, delta))
                await arrived.put(None)
            except Exception as error:
                await arrived.put(error)

        tasks = [asyncio.create_task(follow(index)) for index in range(count)]
        try:
            left = count
            while left:
                item = await arrived.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    left -= 1
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _choice(self, caller: Caller, index: int) -> AsyncGenerator[Delta]:
        """One choice's text as it becomes certain."""
        body = self.body
        place, choice = divmod(index, body.n)
        prompt = self.prompts[place]
        writer = ChoiceWriter(self.model, prompt, body)
        if place not in self._started:  # all choices of a prompt at once: they share its rows
            generations = [
                self._generation(number) if body.max_tokens else None for number in range(body.n)
            ]
            echo_top = body.logprobs if body.echo else None
            started = self.model.complete(caller, prompt, generations, echo_top)
            self._started[place] = started
        async with aclosing(self._started[place][choice]) as events:
            async for event in events:
                if isinstance(event, Generated):
                    self.generated += 1
                    delta = writer.generated(event)
                    if delta is not None:
                        yield delta
                    if writer.finished:
                        return
                else:
                    writer.scored(event)
        yield writer.end()

    def _generation(self, choice: int) -> Generation:
        body, tokenizer = self.body, self.model.tokenizer
        sampling = Sampling(
            body.temperature,
            body.top_k,
            body.top_p,
            self.seed,
            choice,
            banned=(tokenizer.start_id,),
        )
        ends = frozenset({tokenizer.end_id})
        return Generation(sampling, body.max_tokens, ends, body.logprobs or 0)

    def _usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.generated,
            "total_tokens": self.prompt_tokens + self.generated,
        }


def _json(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def _event(value: object) -> bytes:
    return b"data: " + _json(value) + b"\n\n"
