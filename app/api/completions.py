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
from app.api.completion_choice import ChoiceWriter, Delta, Lister, PromptWriter
from app.api.completion_logprobs import Columns, written
from app.api.completion_options import Generations, count_of
from app.api.http.body import documented, read, unless_gone
from app.api.http.errors import describe
from app.api.http.openapi import reference
from app.api.http.stream import HoldingResponse
from app.engine.engine import Caller
from app.engine.sequence import TopWanted
from app.errors import RequestError
from app.lm.model import Completing, LanguageModel, Prompt, PromptOptions, ScoredPart, by_size
from app.settings import Settings
from app.text.lines import on_one_line
from app.wire.completions import CompletionRequest, CompletionResponse
from app.wire.models import ErrorResponse

router = APIRouter()
_EVENTS = {
    "type": "object",
    "required": ["data"],
    "properties": {
        "data": {
            "anyOf": [
                {
                    "type": "string",
                    "contentMediaType": "application/json",
                    "contentSchema": {
                        "anyOf": [reference(CompletionResponse), reference(ErrorResponse)]
                    },
                },
                {"const": "[DONE]"},
            ]
        }
    },
}
"""What OpenAPI says of an event of a stream."""
Part = bytes | bytearray
_UNSENT = 64
"""Pieces of text made ready for a slow reader; what is generated meanwhile waits as tokens."""
_SLICE_BYTES = 1 << 18
"""Longer answers are sent in slices: the transport copies what the connection does not take."""


@router.post(
    "/v1/completions",
    summary="Complete text",
    response_model=CompletionResponse,
    responses={
        200: {
            "description": "JSON, or with `stream` server-sent events; their schema is that of an "
            "event.",
            "content": {"text/event-stream": {"schema": _EVENTS}},
        }
    },
    openapi_extra=documented(CompletionRequest),
)
async def completions(request: Request) -> Response:
    """Text that goes on from prompts, as OpenAI's completions endpoint gives it.

    A text prompt goes on from the start symbol, which is neither listed nor counted; token ids
    are taken as they are.
    """
    catalog = request.app.state.catalog
    settings: Settings = catalog.settings
    catalog.check()
    body = await read(request, CompletionRequest, settings)
    ignored = len(body.model_extra or ())
    if body.stream_options is not None:
        ignored += len(body.stream_options.model_extra or ())
    request.app.state.metrics.ignored_fields.inc(ignored)
    model: LanguageModel = await catalog.loaded(body.model)
    _check_limits(model, body)
    return await unless_gone(request, _answer(model, body))


def _check_limits(model: LanguageModel, body: CompletionRequest) -> None:
    settings = model.settings
    limits.lower_default(settings, body, "max_tokens", "max_completion_tokens")
    if body.min_tokens > body.max_tokens:  # which was compared with the default before
        raise RequestError("min_tokens: must not be above max_tokens", "min_tokens")
    choices = body.n * len(body.prompt)
    for name, value, limit in (
        ("max_tokens", body.max_tokens, "max_completion_tokens"),
        ("logprobs", count_of(model, body.logprobs), "max_top_logprobs"),
        ("prompt_logprobs", count_of(model, body.prompt_logprobs), "max_top_logprobs"),
        ("logprob_token_ids", len(body.logprob_token_ids or ()), "max_top_logprobs"),
        ("stop", len(body.stop), "max_stop_strings"),
        ("bad_words", len(body.bad_words), "max_stop_strings"),
        ("n", body.n, "max_request_texts"),
        ("n" if body.n > 1 else "prompt", choices, "max_request_texts"),
    ):
        limits.check(settings, name, value, limit)


async def _answer(model: LanguageModel, body: CompletionRequest) -> Response:
    options = PromptOptions(
        body.add_special_tokens,
        body.truncate_prompt_tokens,
        body.truncation_side,
        special=not body.skip_special_tokens,
    )
    prompts = await model.prompts(body.prompt, options=options)
    size = sum(map(len, [body.logit_bias, body.stop_token_ids, *body.bad_words]))
    size += len(body.allowed_token_ids or ())
    completion = await by_size(size, lambda: _Completion(model, body, prompts))
    stack = AsyncExitStack()
    try:
        stack.enter_context(
            model.admission.admitted(completion.tokens, model.engine.tokens_per_second)
        )
        caller = await stack.enter_async_context(model.engine.caller())
        if body.stream:
            events = completion.events(caller)
            return HoldingResponse(events, "text/event-stream", stack.pop_all())
        parts = await completion.whole(caller)
        if sum(map(len, parts)) <= _SLICE_BYTES:
            return Response(b"".join(parts), media_type="application/json")
        return HoldingResponse(_sliced(parts), "application/json", stack.pop_all())
    finally:
        await stack.aclose()


async def _sliced(parts: Sequence[Part]) -> AsyncGenerator[bytes]:
    small = bytearray()
    for part in parts:
        small += part[:_SLICE_BYTES]
        if len(small) < _SLICE_BYTES:
            continue
        yield bytes(small)
        small.clear()
        for first in range(_SLICE_BYTES, len(part), _SLICE_BYTES):
            yield bytes(part[first : first + _SLICE_BYTES])
    yield bytes(small)


@dataclass(slots=True)
class _Choice:
    """What has come of one choice."""

    text: list[str] = field(default_factory=list)
    finish: str | None = None
    stop_reason: str | int | None = None
    columns: Columns = field(default_factory=Columns)
    token_ids: list[int] = field(default_factory=list)

    def add(self, delta: Delta) -> None:
        """Takes the next piece."""
        self.text.append(delta.text)
        self.finish, self.stop_reason = delta.finish, delta.stop_reason
        self.columns.extend(delta.columns)
        self.token_ids += delta.token_ids


class _Started:
    """A prompt that the engine goes on from, and what is listed of it."""

    def __init__(self, completing: Completing, front: PromptWriter) -> None:
        self.completing, self.front = completing, front
        self._reading = asyncio.Lock()

    async def read(self) -> None:
        """Reads the scores that all choices share; the first of them does it for all."""
        if self.completing.scores is not None:
            async with self._reading:
                async for part in self.completing.scores:
                    self.front.scored(part)


class _Completion:
    """All choices of one request."""

    def __init__(
        self, model: LanguageModel, body: CompletionRequest, prompts: Sequence[Prompt]
    ) -> None:
        self.model, self.body, self.prompts = model, body, prompts
        self.count = len(prompts) * body.n
        self.seed = secrets.randbits(63) if body.seed is None else body.seed
        self.generations = Generations(model, body, self.seed)
        self.lister = Lister(model, body)
        self.head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": model.fingerprint,
        }
        self.prompt_tokens = sum(len(p.ids) - p.given for p in prompts)
        self.generated = 0
        self._started: dict[int, _Started] = {}

    @property
    def tokens(self) -> int:
        """Tokens that this request may cost."""
        return self.prompt_tokens + self.count * self.body.max_tokens

    async def whole(self, caller: Caller) -> list[Part]:
        """The response's body, in parts."""
        choices = [_Choice() for _ in range(self.count)]

        async def collect(index: int) -> None:
            async with aclosing(self._choice(caller, index)) as deltas:
                async for delta in deltas:
                    choices[index].add(delta)

        try:
            async with asyncio.TaskGroup() as group:
                for index in range(self.count):
                    group.create_task(collect(index))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        parts: list[Part] = [_json(self.head)[:-1], b',"choices":[']
        for index, choice in enumerate(choices):
            parts += [b","] if index else []
            parts += self._written(index, choice)
        return [*parts, b'],"usage":', _json(self._usage()), b"}"]

    def _written(self, index: int, choice: _Choice) -> list[Part]:
        front = self._started[index // self.body.n].front
        fields = self._fields(
            index,
            "".join(choice.text),
            choice.finish,
            choice.stop_reason,
            choice.token_ids,
            front.ids,
        )
        parts: list[Part] = [_json(fields)[:-1], b',"logprobs":']
        parts += written(front.columns, choice.columns) if self.lister.wanted else [b"null"]
        if self.body.prompt_logprobs is None:
            return [*parts, b',"prompt_logprobs":null}']
        return [*parts, b',"prompt_logprobs":[', front.logprobs, b"]}"]

    async def events(self, caller: Caller) -> AsyncGenerator[bytes]:
        """Server-sent events: a chunk for each piece of text, then [DONE]."""
        options = self.body.stream_options
        counted = options is not None and options.include_usage
        each = counted and options is not None and options.continuous_usage_stats
        try:
            async with aclosing(self._merged(caller)) as deltas:
                async for index, delta, usage in deltas:
                    chunk = {**self.head, "choices": [self._chunk(index, delta)]}
                    yield _event({**chunk, "usage": usage} if each else chunk)
            if counted:
                yield _event({**self.head, "choices": [], "usage": self._usage()})
        except Exception as error:  # the status is long sent; the stream says it instead
            yield _event(describe(error)[1])
        yield b"data: [DONE]\n\n"

    def _chunk(self, index: int, delta: Delta) -> dict[str, Any]:
        """One choice in a chunk of a stream."""
        front = self._started[index // self.body.n].front
        ids = front.ids if delta.first else None
        fields = self._fields(
            index, delta.text, delta.finish, delta.stop_reason, delta.token_ids, ids
        )
        lists = [front.columns, delta.columns] if delta.first else [delta.columns]
        listed = orjson.Fragment(b"".join(written(*lists))) if self.lister.wanted else None
        return {**fields, "logprobs": listed}

    def _fields(
        self,
        index: int,
        text: str,
        finish: str | None,
        stop_reason: str | int | None,
        token_ids: list[int],
        prompt_ids: list[int] | None,
    ) -> dict[str, Any]:
        wanted = self.body.return_token_ids
        return {
            "index": index,
            "text": text,
            "finish_reason": finish,
            "stop_reason": stop_reason,
            "token_ids": token_ids if wanted else None,
            "prompt_token_ids": prompt_ids if wanted else None,
        }

    async def _merged(self, caller: Caller) -> AsyncGenerator[tuple[int, Delta, dict[str, int]]]:
        """Pieces of all choices as they come, with the usage so far."""
        arrived: asyncio.Queue[tuple[int, Delta, dict[str, int]] | Exception | None]
        arrived = asyncio.Queue(_UNSENT)

        async def follow(index: int) -> None:
            try:
                async with aclosing(self._choice(caller, index)) as deltas:
                    async for delta in deltas:
                        await arrived.put((index, delta, self._usage()))
                await arrived.put(None)
            except Exception as error:
                await arrived.put(error)

        tasks = [asyncio.create_task(follow(index)) for index in range(self.count)]
        try:
            left = self.count
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
        place, choice = divmod(index, self.body.n)
        if place not in self._started:  # all choices of a prompt at once: they share its rows
            self._started[place] = self._start(caller, self.prompts[place])
        started = self._started[place]
        writer = ChoiceWriter(self.lister, self.prompts[place], self.body)
        await started.read()
        async with aclosing(started.completing.choices[choice]) as parts:
            async for part in parts:
                if isinstance(part, ScoredPart):
                    started.front.scored(part)
                    continue
                for lot in [part] if writer.joins else [[event] for event in part]:
                    self.generated += len(lot)
                    delta = writer.generated(lot)
                    if delta is not None:
                        yield delta
                    if writer.finished:
                        return
        yield writer.end()

    def _start(self, caller: Caller, prompt: Prompt) -> _Started:
        body = self.body
        numbers = range(body.n if body.max_tokens else 0)
        generations = [self.generations.of(prompt, number) for number in numbers]
        completing = self.model.complete(caller, prompt, generations, self._scored(), body.n)
        return _Started(completing, PromptWriter(self.lister, prompt, body))

    def _scored(self) -> TopWanted | None:
        """TopWanted of the prompt's tokens, None if they are not listed."""
        echoed = self.generations.top if self.body.echo and self.lister.wanted else None
        if self.body.prompt_logprobs is None:
            return echoed
        # at least one, since ranks come with the distributions of one
        wanted = max(1, count_of(self.model, self.body.prompt_logprobs))
        return wanted if not isinstance(echoed, int) else max(wanted, echoed)

    def _usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.generated,
            "total_tokens": self.prompt_tokens + self.generated,
        }


def _json(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def _event(value: object) -> bytes:
    return b"data: " + on_one_line(_json(value)) + b"\n\n"
