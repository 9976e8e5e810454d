"""The response to a completion: JSON once all choices have ended, or server-sent events."""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from app.api import json_stream
from app.api.completion_choice import (
    ChoiceWriter,
    Columns,
    Delta,
    EntryFactory,
    PromptWriter,
    logprobs_object,
)
from app.api.completion_options import Generations, count_of
from app.api.http.deadlines import until
from app.api.http.errors import describe
from app.api.json_stream import Part
from app.lm.completing import complete
from app.wire.completions import CompletionRequest

if TYPE_CHECKING:
    from app.api.http.deadlines import Deadline
    from app.engine.engine import Caller
    from app.engine.sequence import TopWanted
    from app.lm.completing import Completing
    from app.lm.model import LanguageModel
    from app.lm.prompts import Prompt

_UNSENT = 64
"""Deltas that wait for a slow reader; tokens generated after them wait with the engine."""
_BEGUN_TOGETHER = 32
"""Choices that begin before others may use the event loop; each takes about 0.1 ms of it."""
_Arrival = tuple[int, Delta, dict[str, int]]
"""The index of a choice, its next delta, and the usage so far."""


@dataclass(slots=True)
class _Choice:
    """The deltas of one choice put together."""

    text: list[str] = field(default_factory=list)
    finish: str | None = None
    stop_reason: str | int | None = None
    columns: Columns = field(default_factory=Columns)
    token_ids: list[int] = field(default_factory=list)

    def add(self, delta: Delta) -> None:
        """Appends the next delta."""
        self.text.append(delta.text)
        self.finish, self.stop_reason = delta.finish, delta.stop_reason
        self.columns.extend(delta.columns)
        self.token_ids += delta.token_ids


class _StartedPrompt:
    """A prompt that the engine works on, and the writer of its tokens."""

    def __init__(self, completing: Completing, writer: PromptWriter) -> None:
        (self._scores, self.choices), self.writer = completing, writer
        self._reading = asyncio.Lock()

    async def read(self) -> None:
        """Reads the scores that all choices share; the first choice does it for all."""
        if self._scores is not None:
            async with self._reading:
                async for part in self._scores:
                    self.writer.scored(part)


class Completion:
    """All choices of one request."""

    def __init__(
        self, model: LanguageModel, body: CompletionRequest, prompts: list[Prompt]
    ) -> None:
        self.model, self.body, self.prompts = model, body, prompts
        self.count = len(prompts) * body.n
        self.seed = secrets.randbits(63) if body.seed is None else body.seed
        self.generations = Generations(model, body, self.seed)
        self.factory = EntryFactory(model, body)
        self.head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": model.fingerprint,
        }
        self.prompt_tokens = sum(len(p.ids) - p.given for p in prompts)
        self.generated = 0
        self._started: dict[int, _StartedPrompt] = {}

    @property
    def rows_due(self) -> int:
        """Rows that the engine computes before it generates: all of a prompt that is scored, else
        what the receptive field reaches, and a row for each choice."""
        scored = self._prompt_alternatives() is not None
        halo = self.model.halo
        prompts = sum(len(p.ids) if scored else min(halo, len(p.ids)) for p in self.prompts)
        return prompts + (self.count if self.body.max_tokens else 0)

    async def document(self, caller: Caller) -> list[Part]:
        """The JSON of all choices, in parts, once they have ended."""
        choices = [_Choice() for _ in range(self.count)]
        async with aclosing(self._merged(caller)) as arrivals:
            async for index, delta, _ in arrivals:
                choices[index].add(delta)
        parts: list[Part] = [json_stream.open_object(self.head), json_stream.open_array("choices")]
        for index, choice in enumerate(choices):
            parts += [json_stream.SEPARATOR] if index else []
            parts += self._choice_object(index, choice)
        usage = json_stream.close_object({"usage": self._usage()})
        return [*parts, json_stream.CLOSE_ARRAY, usage]

    def _choice_object(self, index: int, choice: _Choice) -> list[Part]:
        """The JSON of one choice, in parts."""
        prompt = self._started[index // self.body.n].writer
        fields = self._fields(index, "".join(choice.text), choice, prompt.ids)
        parts: list[Part] = [json_stream.open_object(fields)]
        if self.factory.listed:
            parts.append(json_stream.key("logprobs"))
            parts += logprobs_object(prompt.columns, choice.columns)
        else:
            parts.append(json_stream.members({"logprobs": None}))
        if self.body.prompt_logprobs is None:
            return [*parts, json_stream.close_object({"prompt_logprobs": None})]
        parts += [json_stream.open_array("prompt_logprobs"), prompt.logprobs]
        return [*parts, json_stream.CLOSE_ARRAY, json_stream.CLOSE_OBJECT]

    async def events(
        self, caller: Caller, deadline: Deadline | None = None
    ) -> AsyncGenerator[bytes]:
        """Server-sent events: a chunk for each piece of text, then [DONE].

        Raises an exception before the first event; later it is an event.
        """
        begun = False
        options = self.body.stream_options
        counted = options is not None and options.include_usage
        each = counted and options is not None and options.continuous_usage_stats
        try:
            async with aclosing(until(deadline, self._merged(caller))) as arrivals:
                async for index, delta, usage in arrivals:
                    chunk = {**self.head, "choices": [self._chunk(index, delta)]}
                    begun = True
                    yield json_stream.event({**chunk, "usage": usage} if each else chunk)
            if counted:
                yield json_stream.event({**self.head, "choices": [], "usage": self._usage()})
        except Exception as error:
            if not begun:
                raise
            # the status has been sent; the stream reports it
            yield json_stream.event(describe(error)[1])
        yield json_stream.LAST_EVENT

    def _chunk(self, index: int, delta: Delta) -> dict[str, Any]:
        """One choice in a chunk of a stream."""
        prompt = self._started[index // self.body.n].writer
        ids = prompt.ids if delta.first else None
        fields = self._fields(index, delta.text, delta, ids)
        logprobs = None
        if self.factory.listed:
            columns = [prompt.columns, delta.columns] if delta.first else [delta.columns]
            logprobs = orjson.Fragment(b"".join(logprobs_object(*columns)))
        return {**fields, "logprobs": logprobs}

    def _fields(
        self, index: int, text: str, choice: _Choice | Delta, prompt_ids: list[int] | None
    ) -> dict[str, Any]:
        wanted = self.body.return_token_ids
        return {
            "index": index,
            "text": text,
            "finish_reason": choice.finish,
            "stop_reason": choice.stop_reason,
            "token_ids": choice.token_ids if wanted else None,
            "prompt_token_ids": prompt_ids if wanted else None,
        }

    async def _merged(self, caller: Caller) -> AsyncGenerator[_Arrival]:
        """The deltas of all choices as they come."""
        arrived: asyncio.Queue[_Arrival | Exception | None] = asyncio.Queue(_UNSENT)

        async def forward(index: int) -> None:
            try:
                async with aclosing(self._deltas(caller, index)) as deltas:
                    async for delta in deltas:
                        await arrived.put((index, delta, self._usage()))
                await arrived.put(None)
            except Exception as error:
                await arrived.put(error)

        tasks: list[asyncio.Task[None]] = []
        try:
            for index in range(self.count):
                tasks.append(asyncio.create_task(forward(index)))
                if len(tasks) % _BEGUN_TOGETHER == 0:
                    await asyncio.sleep(0)
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

    async def _deltas(self, caller: Caller, index: int) -> AsyncGenerator[Delta]:
        """One choice's text as it becomes certain."""
        number, choice = divmod(index, self.body.n)
        prompt = self.prompts[number]
        if number not in self._started:  # all choices of a prompt at once: they share its rows
            self._started[number] = self._start(caller, prompt)
        started = self._started[number]
        writer = ChoiceWriter(self.factory, prompt, self.body)
        await started.read()
        async with aclosing(started.choices[choice]) as parts:
            async for part in parts:
                if not isinstance(part, list):
                    started.writer.scored(part)
                    continue
                for lot in [part] if writer.joins else [[event] for event in part]:
                    self.generated += len(lot)
                    delta = writer.generated(lot)
                    if delta is not None:
                        yield delta
                    if writer.finished:
                        return
        yield writer.end()

    def _start(self, caller: Caller, prompt: Prompt) -> _StartedPrompt:
        body = self.body
        numbers = range(body.n if body.max_tokens else 0)
        generations = [self.generations.of(prompt, number) for number in numbers]
        completing = complete(caller, prompt, generations, self._prompt_alternatives(), body.n)
        return _StartedPrompt(completing, PromptWriter(self.factory, prompt, body))

    def _prompt_alternatives(self) -> TopWanted | None:
        """Alternatives of the prompt's tokens, None if they are not listed."""
        echoed = self.generations.top if self.body.echo and self.factory.listed else None
        if self.body.prompt_logprobs is None:
            return echoed
        # at least one, since ranks need at least one alternative
        wanted = max(1, count_of(self.model, self.body.prompt_logprobs))
        return wanted if not isinstance(echoed, int) else max(wanted, echoed)

    def _usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.generated,
            "total_tokens": self.prompt_tokens + self.generated,
        }
