"""Lines of NDJSON to lines of answers, many lines to a call of the engine."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING

from pydantic import ValidationError

from app.api import json_stream
from app.api.bulk_line import HeldLines, Line, custom_id_of
from app.api.http.body import INLINE_BYTES, parse
from app.api.http.errors import describe, from_validation
from app.api.http.stream import MAX_BUFFERED_ENTRIES
from app.api.score_writer import ScoreWriter, alternatives_wanted, entries_per_token, tokenise
from app.errors import (
    DeadlineError,
    EngineError,
    LateBatchError,
    NotReadyError,
    OverloadError,
    RequestError,
    TooLargeError,
    UnloadableError,
)
from app.lm.threads import by_size
from app.text.lines import Lines
from app.wire.bulk import BulkLine

if TYPE_CHECKING:
    from app.api.http.open_bodies import OpenBody
    from app.catalog.catalog import Catalog
    from app.lm.model import LanguageModel
    from app.lm.scoring import Scores
    from app.lm.texts import TextTokens

GROUP_LINES = 64
GROUP_BYTES = 1 << 16
"""Lines that are tokenised and scored together: a call's cost is shared, and answers flow."""
WORK_LINES = 256
WORK_BYTES = 1 << 20
"""Lines in work, unsent answers included; while there are more the body is not read."""
_PAUSE_SECONDS = 1.0
_LINES_AT_ONCE = 1024
"""Lines, most of them blank, that are read before others may use the event loop."""


class Bulk:
    """Takes a body in parts and gives the answers to its lines, holding a bounded number of lines.

    One task feeds the body and one reads the answers, at the same time. in_order: answers come in
    the order of the lines, else each when it is ready. held: its share of all open bodies.
    """

    def __init__(self, catalog: Catalog, held: OpenBody, *, in_order: bool) -> None:
        self._catalog, self._in_order = catalog, in_order
        self._held = HeldLines(held)
        self._overload: OverloadError | None = None
        """Why the line that has begun was dropped, unless it was too long."""
        self._lines = Lines(catalog.settings.max_request_bytes)
        self._next_index = 0
        self._begun = self._begun_weight = 0
        self._ended = False
        self._answers: deque[Line] = deque()
        """Lines in the order in which their answers are written."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: Exception | None = None
        self._room, self._ready = asyncio.Event(), asyncio.Event()
        self._counts = {"lines": 0, "errors": 0, "tokens": 0}
        self._torn = False
        """Whether a part of a line is written and its end is not."""

    async def feed(self, part: bytes) -> None:
        """Takes the next bytes of the body; waits while there is enough in work."""
        if lines := self._lines.feed(part):
            self._held.complete()
            await self._take(lines)
        begun = self._lines.held
        try:
            self._held.begin(begun if begun > INLINE_BYTES else 0)
        except OverloadError as error:
            self._overload = error
            self._lines.drop()
            self._held.begin(0)

    async def end(self) -> None:
        """Says that the body is complete."""
        await self._take(self._lines.end())
        self._ended = True
        self._ready.set()

    async def answers(self) -> AsyncGenerator[bytes]:
        """Complete lines, or parts of a long line; the summary last.

        Raises NotReadyError, EngineError.
        """
        while not (self._ended and not self._begun):
            if ready := list(self._take_ready()):
                yield b"".join(line.answer or b"" for line in ready)
                self._release(ready)
            elif self._failure is not None:
                raise self._failure
            elif self._answers and self._answers[0].streamed:
                line = self._answers.popleft()
                async with aclosing(self._stream(line)) as parts:
                    async for part in parts:
                        yield part
                self._release([line])
            else:
                self._ready.clear()
                try:
                    async with asyncio.timeout(_PAUSE_SECONDS):
                        await self._ready.wait()
                except TimeoutError:
                    self._catalog.check_open()  # a stalled upload would miss the shutdown
        yield json_stream.line({"object": "summary", **self._counts})

    def owes(self) -> bool:
        """Whether lines are in work whose answers are not sent."""
        return self._begun > 0

    def cut_off(self, error: NotReadyError | EngineError | DeadlineError) -> bytes:
        """The last line instead of the summary, when the rest cannot be answered."""
        line = json_stream.line(describe(error)[1])
        return b"\n" + line if self._torn else line

    async def close(self) -> None:
        """Cancels what is in work."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Lines in

    async def _take(self, raw_lines: Iterable[bytes | None]) -> None:
        group: list[Line] = []
        weight = 0
        for raw in raw_lines:
            index, self._next_index = self._next_index, self._next_index + 1
            if not self._next_index % _LINES_AT_ONCE:
                await asyncio.sleep(0)
            if raw is not None and not raw.strip():
                continue
            line = await self._parse(index, raw)
            if group and (len(group) == GROUP_LINES or weight + line.weight > GROUP_BYTES):
                await self._begin(group, weight)
                group, weight = [], 0
            group.append(line)
            weight += line.weight
        if group:
            await self._begin(group, weight)

    async def _parse(self, index: int, raw: bytes | None) -> Line:
        if raw is None:
            message = f"line: over the limit max_request_bytes, {self._lines.limit}"
            error = self._overload or TooLargeError(message)
            self._overload = None
            return self._refuse(Line(index), error)
        line = Line(index, weight=len(raw))
        try:
            settings = self._catalog.settings
            if len(raw) > INLINE_BYTES:
                self._held.add(line, len(raw))
            hold = partial(self._held.add, line)
            body = await parse(BulkLine, raw, settings, self._held.body.bodies, hold)
            line.body, line.custom_id = body, body.custom_id
            settings.check_limit("top_logprobs", body.top_logprobs, "max_top_logprobs")
        except ValidationError as error:
            line.custom_id = await by_size(len(raw), partial(custom_id_of, raw))
            return self._refuse(line, from_validation(error))
        except (RequestError, OverloadError) as error:
            return self._refuse(line, error)
        entries = entries_per_token(body)
        line.weight *= max(1, entries)
        line.streamed = bool(entries) and line.weight > MAX_BUFFERED_ENTRIES
        return line

    async def _begin(self, group: list[Line], weight: int) -> None:
        """Puts lines to work when there is room for them, or nothing else is in work."""
        while self._begun and (
            self._begun + len(group) > WORK_LINES or self._begun_weight + weight > WORK_BYTES
        ):
            self._room.clear()
            await self._room.wait()
        self._begun += len(group)
        self._begun_weight += weight
        now = asyncio.get_running_loop().time()
        together: dict[tuple[object, ...], list[Line]] = {}
        for line in group:
            if self._in_order or line.streamed or line.answer is not None:
                self._answers.append(line)
            if line.body is not None and line.body.timeout_seconds is not None:
                line.deadline = now + line.body.timeout_seconds
            if line.body is not None and line.answer is None and not line.streamed:
                together.setdefault(line.kind(alternatives_wanted(line.body)), []).append(line)
        for lines in together.values():
            task = asyncio.create_task(self._answer(lines))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._ready.set()

    # Answers

    async def _answer(self, lines: list[Line]) -> None:
        """Gives every line its answer, or an error."""
        try:
            await self._score_in_time(lines)
        except (RequestError, EngineError) as error:
            if len(lines) == 1:
                self._finish(self._refuse(lines[0], error))
                return
            left = [line for line in lines if line.answer is None]
            if isinstance(error, RequestError):  # one of them is wrong
                await asyncio.gather(*(self._answer([line]) for line in left))
                return
            for line in left:  # one after the other, or they would share a batch again
                await self._answer([line])
        except UnloadableError as error:
            for line in lines:
                self._finish(self._refuse(line, error))
        except Exception as error:  # the server stops, or has a bug
            self._failure = error
            self._ready.set()

    async def _model(self, name: str | None) -> LanguageModel:
        """A model by name; while a batch of its engine is late the lines wait."""
        while True:
            try:
                return await self._catalog.loaded(name)
            except LateBatchError:
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _score_in_time(self, lines: list[Line]) -> None:
        """As `_score`; lines that have no answer in the time that all of them give get an error."""
        try:
            async with asyncio.timeout_at(lines[0].deadline):  # they began together
                await self._score(lines)
        except TimeoutError:
            for line in lines:
                if line.answer is None:
                    self._finish(self._refuse(line, self._late()))

    async def _score(self, lines: list[Line]) -> None:
        """Answers lines of one kind."""
        body = lines[0].request
        model = await self._model(body.model)
        inputs = [text for line in lines for text in line.request.input]
        texts = await tokenise(model, inputs, body)
        with self._scores(model, texts, body) as scores:
            await self._submit(scores)
            first = 0
            for line in lines:
                last = first + len(line.request.input)
                writer = ScoreWriter(model, texts[first:last], line.request)
                document = await writer.document(scores)
                line.answer = json_stream.prepend_members(line.names, document) + b"\n"
                self._counts["tokens"] += writer.tokens
                self._finish(line)
                first = last

    async def _stream(self, line: Line) -> AsyncGenerator[bytes]:
        """A long line's answer. Its errors end the response once a part of it is sent."""
        body = line.request
        try:
            async with asyncio.timeout_at(line.deadline):
                model = await self._model(body.model)
                texts = await tokenise(model, body.input, body)
            writer = ScoreWriter(model, texts, body)
            with self._scores(model, texts, body) as scores:
                async with asyncio.timeout_at(line.deadline):
                    await self._submit(scores)
                async with aclosing(writer.parts(scores)) as parts:
                    while True:
                        async with asyncio.timeout_at(line.deadline):
                            part = await anext(parts, None)
                        if part is None:
                            break
                        yield part if self._torn else json_stream.prepend_members(line.names, part)
                        self._torn = True
            yield b"\n"
            self._torn = False
            self._counts["tokens"] += writer.tokens
        except TimeoutError:
            if self._torn:
                raise self._late() from None
            yield self._refuse(line, self._late()).answer or b""
        except (RequestError, EngineError, UnloadableError) as error:
            if self._torn:
                raise
            yield self._refuse(line, error).answer or b""

    def _scores(self, model: LanguageModel, texts: list[TextTokens], body: BulkLine) -> Scores:
        wanted, bulk = alternatives_wanted(body), body.priority > 0
        return model.score(texts, wanted, cache=body.cache, bulk=bulk, lines=True)

    async def _submit(self, scores: Scores) -> None:
        """Submits; while the queue is full the lines wait, and the body with them."""
        await scores.wait_for_room()
        scores.submit()

    def _late(self) -> DeadlineError:
        """The error of a line whose time is over."""
        self._catalog.metrics.rejected.labels("timeout").inc()
        return DeadlineError()

    # Lines out

    def _refuse(self, line: Line, error: Exception) -> Line:
        """The line, answered with an error."""
        answer = json_stream.line(describe(error)[1])
        line.answer = json_stream.prepend_members(line.names, answer)
        line.streamed = False
        self._counts["errors"] += 1
        return line

    def _finish(self, line: Line) -> None:
        if not self._in_order:
            self._answers.append(line)
        self._ready.set()

    def _take_ready(self) -> Iterator[Line]:
        """Removes the first lines as far as they are answered."""
        while self._answers and self._answers[0].answer is not None:
            yield self._answers.popleft()

    def _release(self, lines: list[Line]) -> None:
        """Makes room: these lines' answers are sent."""
        self._counts["lines"] += len(lines)
        self._begun -= len(lines)
        self._begun_weight -= sum(line.weight for line in lines)
        for line in lines:
            if line.held:
                self._held.release(line)
        self._room.set()
