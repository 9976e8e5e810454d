"""Lines of NDJSON to lines of answers, many lines to a call of the engine."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import orjson
from pydantic import ValidationError

from app.api.http.body import parse
from app.api.http.errors import describe, from_validation
from app.api.http.stream import MAX_BUFFERED_ENTRIES
from app.api.score import Answer
from app.catalog.catalog import Catalog
from app.errors import (
    EngineError,
    NotReadyError,
    OverloadError,
    RequestError,
    TooLargeError,
    UnloadableError,
)
from app.lm.model import LanguageModel, ScoredPart, TextOrIds, TextTokens
from app.text.lines import Lines
from app.wire.bulk import BulkLine

GROUP_LINES = 64
GROUP_BYTES = 1 << 16
"""Lines that are tokenised and scored together: a call's cost is shared, and answers flow."""
WORK_LINES = 256
WORK_BYTES = 1 << 20
"""Lines in work, unsent answers included; while there are more the body is not read."""
_PAUSE_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class _Line:
    """A line in work. weight: bytes, times the entries that a token has in the answer."""

    index: int
    custom_id: str | None = None
    body: BulkLine | None = None
    weight: int = 0
    streamed: bool = False
    """Whether the answer is too long to be held: it is written as it comes, in its turn."""
    answer: bytes | None = None

    @property
    def head(self) -> bytes:
        """The beginning of the answer."""
        return b'{"index":%d,"custom_id":%b,' % (self.index, orjson.dumps(self.custom_id))


class Bulk:
    """Takes a body in parts and gives the answers to its lines, holding a bounded number.

    One caller feeds and one reads the answers, at the same time. in_order: answers come in the
    order of the lines, else each when it is ready.
    """

    def __init__(self, catalog: Catalog, *, in_order: bool) -> None:
        self._catalog, self._in_order = catalog, in_order
        self._lines = Lines(catalog.settings.max_request_bytes)
        self._place = 0
        self._begun = self._begun_weight = 0
        self._ended = False
        self._answers: deque[_Line] = deque()
        """Lines in the order in which their answers are written."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: Exception | None = None
        self._room, self._ready = asyncio.Event(), asyncio.Event()
        self._counts = {"lines": 0, "errors": 0, "tokens": 0}
        self._torn = False
        """Whether a line is written in parts, and not all are."""

    async def feed(self, part: bytes) -> None:
        """Takes the next bytes of the body; waits while there is enough in work."""
        await self._take(self._lines.feed(part))

    async def end(self) -> None:
        """Says that the body is complete."""
        await self._take(self._lines.end())
        self._ended = True
        self._ready.set()

    async def answers(self) -> AsyncGenerator[bytes]:
        """Whole lines, or parts of a long one; the summary last.

        Raises NotReadyError, EngineError.
        """
        while not (self._ended and not self._begun):
            if done := list(self._done()):
                yield b"".join(line.answer or b"" for line in done)
                self._release(done)
            elif self._failure is not None:
                raise self._failure
            elif self._answers and self._answers[0].streamed:
                line = self._answers.popleft()
                async with aclosing(self._streamed(line)) as parts:
                    async for part in parts:
                        yield part
                self._release([line])
            else:
                self._ready.clear()
                try:
                    async with asyncio.timeout(_PAUSE_SECONDS):
                        await self._ready.wait()
                except TimeoutError:
                    self._catalog.check_open()  # an upload that stalls hears of it nowhere else
        yield orjson.dumps({"object": "summary", **self._counts}) + b"\n"

    def cut_off(self, error: NotReadyError | EngineError) -> bytes:
        """The last line instead of the summary, when the rest cannot be answered."""
        line = orjson.dumps(describe(error)[1]) + b"\n"
        return b"\n" + line if self._torn else line

    async def close(self) -> None:
        """Drops what is in work."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Lines in

    async def _take(self, raw_lines: Sequence[bytes | None]) -> None:
        group: list[_Line] = []
        weight = 0
        for raw in raw_lines:
            index, self._place = self._place, self._place + 1
            if raw is not None and not raw.strip():
                continue
            line = await self._parsed(index, raw)
            if group and (len(group) == GROUP_LINES or weight + line.weight > GROUP_BYTES):
                await self._begin(group, weight)
                group, weight = [], 0
            group.append(line)
            weight += line.weight
        if group:
            await self._begin(group, weight)

    async def _parsed(self, index: int, raw: bytes | None) -> _Line:
        if raw is None:
            message = f"line: over the limit max_request_bytes, {self._lines.limit}"
            return self._failed(_Line(index), TooLargeError(message))
        line = _Line(index, weight=len(raw))
        try:
            settings = self._catalog.settings
            body = await parse(BulkLine, raw, settings)
            line.body, line.custom_id = body, body.custom_id
            settings.check_limit("top_logprobs", body.top_logprobs, "max_top_logprobs")
        except ValidationError as error:
            line.custom_id = await asyncio.to_thread(_custom_id, raw)
            return self._failed(line, from_validation(error))
        except RequestError as error:
            return self._failed(line, error)
        entries = (1 + body.top_logprobs if body.detail == "tokens" else 0) + body.words
        line.weight *= max(1, entries)
        line.streamed = bool(entries) and line.weight > MAX_BUFFERED_ENTRIES
        return line

    async def _begin(self, group: list[_Line], weight: int) -> None:
        """Puts lines to work when there is room for them, and at once if nothing else is."""
        while self._begun and (
            self._begun + len(group) > WORK_LINES or self._begun_weight + weight > WORK_BYTES
        ):
            self._room.clear()
            await self._room.wait()
        self._begun += len(group)
        self._begun_weight += weight
        together: dict[tuple[object, ...], list[_Line]] = {}
        for line in group:
            if self._in_order or line.streamed or line.answer is not None:
                self._answers.append(line)
            if line.body is not None and line.answer is None and not line.streamed:
                body = line.body
                # an empty text is often an error, which would cost its neighbours a second try
                alone = line.index if not all(body.input) and not body.add_eos else None
                context = body.context if isinstance(body.context, str) else tuple(body.context)
                kind = (
                    body.model,
                    context,
                    body.add_special_tokens,
                    body.add_eos,
                    _top(body),
                    body.cache,
                    alone,
                )
                together.setdefault((*kind, alone), []).append(line)
        for lines in together.values():
            task = asyncio.create_task(self._answer(lines))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._ready.set()

    # Answers

    async def _answer(self, lines: list[_Line], *, again: bool = False) -> None:
        """Gives every line its answer, or an error. again: the engine has failed on them."""
        try:
            await self._score(lines)
        except RequestError as error:
            if len(lines) == 1:
                self._finish(self._failed(lines[0], error))
            else:  # the others go on, each by itself
                await asyncio.gather(*(self._answer([line]) for line in lines))
        except UnloadableError as error:
            for line in lines:
                self._finish(self._failed(line, error))
        except EngineError as error:
            if again:
                self._finish(self._failed(lines[0], error))
                return
            for line in lines:  # one after the other, or they would be in one batch again
                if line.answer is None:
                    await self._answer([line], again=True)
        except Exception as error:  # the server stops, or a fault of ours
            self._failure = error
            self._ready.set()

    async def _score(self, lines: list[_Line]) -> None:
        """Answers lines that differ in their texts and in `detail` alone."""
        body = _body(lines[0])
        model = await self._catalog.loaded(body.model)
        inputs = [text for line in lines for text in _body(line).input]
        texts = await _tokenised(model, inputs, body)
        async with aclosing(_admitted(model, texts, body)) as scores:
            first = 0
            for line in lines:
                own = texts[first : first + len(_body(line).input)]
                answer = Answer(model, own, _body(line))
                parts = [part async for part in answer.parts(_part_of(scores, first, own))]
                first += len(own)
                line.answer = line.head + b"".join(parts)[1:] + b"\n"
                self._counts["tokens"] += answer.tokens
                self._finish(line)

    async def _streamed(self, line: _Line) -> AsyncGenerator[bytes]:
        """A long line's answer. Its errors end the stream once a part of it is sent."""
        body = _body(line)
        try:
            model = await self._catalog.loaded(body.model)
            own = await _tokenised(model, body.input, body)
            answer = Answer(model, own, body)
            async with aclosing(answer.parts(_admitted(model, own, body))) as parts:
                first = await anext(parts)
                self._torn = True
                yield line.head + first[1:]
                async for part in parts:
                    yield part
            yield b"\n"
            self._torn = False
            self._counts["tokens"] += answer.tokens
        except (RequestError, EngineError, UnloadableError) as error:
            if self._torn:
                raise
            failed = self._failed(line, error)
            yield failed.answer or b""

    # Lines out

    def _failed(self, line: _Line, error: Exception) -> _Line:
        line.answer = line.head + orjson.dumps(describe(error)[1])[1:] + b"\n"
        line.streamed = False
        self._counts["errors"] += 1
        return line

    def _finish(self, line: _Line) -> None:
        if not self._in_order:
            self._answers.append(line)
        self._ready.set()

    def _done(self) -> Iterator[_Line]:
        """Takes the lines whose answers are whole from the front."""
        while self._answers and self._answers[0].answer is not None:
            yield self._answers.popleft()

    def _release(self, lines: list[_Line]) -> None:
        """Makes room: these lines' answers are sent."""
        self._counts["lines"] += len(lines)
        self._begun -= len(lines)
        self._begun_weight -= sum(line.weight for line in lines)
        self._room.set()


def _top(body: BulkLine) -> int:
    """As `Answer.top`: lines that are scored together have the same."""
    return max(body.top_logprobs, int(body.ranks))


async def _tokenised(
    model: LanguageModel, inputs: Sequence[TextOrIds], body: BulkLine
) -> list[TextTokens]:
    return await model.tokenise(
        inputs, body.context, add_eos=body.add_eos, start=body.add_special_tokens
    )


def _body(line: _Line) -> BulkLine:
    assert line.body is not None
    return line.body


def _custom_id(raw: bytes) -> str | None:
    """What a line that is wrong calls itself, if that can be read."""
    try:
        # not orjson: half of a surrogate pair in a text must not hide whose text it is
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    name = line.get("custom_id") if isinstance(line, dict) else None
    return name.encode(errors="backslashreplace").decode() if isinstance(name, str) else None


async def _admitted(
    model: LanguageModel, texts: Sequence[TextTokens], body: BulkLine
) -> AsyncGenerator[tuple[int, ScoredPart]]:
    """Scores; while the server is overloaded by others the lines wait, as does the body."""
    while True:
        try:
            async with aclosing(model.score(texts, _top(body), cache=body.cache)) as scores:
                async for item in scores:
                    yield item
            return
        except OverloadError:  # raised before the first score
            await asyncio.sleep(_PAUSE_SECONDS)


async def _part_of(
    scores: AsyncGenerator[tuple[int, ScoredPart]], first: int, texts: Sequence[TextTokens]
) -> AsyncGenerator[tuple[int, ScoredPart]]:
    """The scores of some consecutive texts of many, from the `first` on."""
    left = sum(text.count for text in texts)
    while left:
        index, part = await anext(scores)
        left -= len(part.logprobs)
        yield index - first, part
