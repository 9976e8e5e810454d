"""Scores of texts: from tokens to sequences of the engine, and from their events to parts."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from app.engine.admission import LARGE_TOKENS
from app.engine.sequence import Distribution, Failed, Finished, Generated, Scored, Sequence
from app.engine.shared_prefixes import Text, prefix_tree
from app.errors import EngineError, NotReadyError, OverloadError
from app.lm.texts import TextTokens
from model.core.graph import Floats
from model.core.text_cache import BLOCK, with_cache

if TYPE_CHECKING:
    from app.engine.admission import Admission
    from app.engine.engine import Engine
    from app.engine.tickets import Ticket

SPAN_ROWS = 8192
"""A longer text goes to the engine in spans, each with R - 1 tokens of history: 0.5 % more rows for
R = 41, 2.6 % for R = 217 (docs/decisions/0004-spans-and-windows.md)."""
WINDOW_ROWS = 4 * SPAN_ROWS
"""Rows of one request with the engine at a time: a slow reader holds back its own work alone. Their
scores with 20 alternatives take 8 MB; an engine of 50,000 tokens a second has work for 0.6 s."""
_GROUP_TEXTS = 256
"""Texts that go to the engine together, which takes about 10 ms of the event loop."""
_LEAST_ROWS = 64
"""Rows that a sequence counts at least in a window, so that it has at most 512 short ones."""

Group = list[tuple[int, list[Sequence]]]
"""Texts whose sequences are submitted together: each text's index and the sequences that score it,
one after the other. Texts may share sequences."""


class Scores:
    """The scores of a request's texts, in order: (index of the text, its next part).

    The request's work is with the engine from the first `submit` until `close`. bulk: whether
    others' work goes first. lines: whether they are lines of a long body, which wait for room
    (`wait_for_room`) instead of being refused.
    """

    def __init__(
        self,
        engine: Engine,
        admission: Admission,
        texts: list[TextTokens],
        groups: Iterator[Group],
        *,
        cache: bool = False,
        bulk: bool = False,
        lines: bool = False,
    ) -> None:
        self._texts, self._groups, self._cache = texts, groups, cache
        self._caller = engine.open_caller(bulk=bulk, patient=lines)
        self._lines, self._submitted = lines, False
        self._admission = admission
        self._queue: deque[tuple[int, _SharedScores]] = deque()
        """Submitted sequences with unread scores, by text and in the text's order."""
        self._rows = 0
        """Rows of the sequences in `_queue`."""

    @property
    def tokens(self) -> int:
        """Tokens to score."""
        return sum(text.scored for text in self._texts)

    async def wait_for_room(self) -> None:
        """Waits until lines may be submitted, which must then be done at once."""
        await self._admission.wait_for_room(self.tokens, bulk=self._caller.bulk)

    def submit(self) -> None:
        """Submits sequences while the window has room; the first time the request must be admitted.

        Raises OverloadError if it is not, and NotReadyError.
        """
        caller = self._caller
        if not self._submitted:
            self._admit()
        while self._rows < WINDOW_ROWS and (group := next(self._groups, None)) is not None:
            shared: dict[Sequence, _SharedScores] = {}
            for index, path in group:
                for sequence in path:
                    scores = shared.get(sequence)
                    if scores is None:
                        scores = shared[sequence] = _SharedScores(max(sequence.rows, _LEAST_ROWS))
                        self._rows += scores.rows
                    scores.readers += 1
                    self._queue.append((index, scores))
            if caller.unsubmitted:
                texts = sum(sequence.rows_left for _, path in group for sequence in path)
                caller.unsubmitted = max(0, caller.unsubmitted - texts)
            try:
                tickets = caller.submit(shared)  # in order of appearance: parents come first
            except NotReadyError:
                self.close()
                raise
            for ticket in tickets:
                shared[ticket.sequence].ticket = ticket

    def _admit(self) -> None:
        tokens = self.tokens
        if not self._lines:
            self._admission.admit(tokens, bulk=self._caller.bulk)
        self._submitted = True
        if tokens > LARGE_TOKENS:
            self._caller.announce(tokens)

    def close(self) -> None:
        """Cancels what is unfinished."""
        self._caller.close()

    def __enter__(self) -> Scores:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> Scores:
        return self

    async def __anext__(self) -> tuple[int, Scored]:
        """The next part, with `cache` all of a text.

        Raises EngineError, and what `submit` raises.
        """
        if not self._cache:
            return await self._next()
        index, part = await self._next()
        text, parts = self._texts[index], [part]
        scored = len(part.logprobs)
        while scored < text.scored:
            _, part = await self._next()
            parts.append(part)
            scored += len(part.logprobs)
        return index, await _with_cache(text, parts)

    async def read_text(self, text: TextTokens) -> Floats:
        """All log-probabilities of the next text, float32 [N]. Raises as iteration does."""
        logprobs: list[Floats] = []
        scored = 0
        while scored < text.scored:
            _, part = await anext(self)
            logprobs.append(part.logprobs)
            scored += len(part.logprobs)
        return np.concatenate(logprobs)

    async def _next(self) -> tuple[int, Scored]:
        if not self._queue:
            self.submit()
        while self._queue:
            index, scores = self._queue[0]
            part = await scores.read()
            if part is not None:
                return index, part
            self._queue.popleft()
            if not scores.readers:
                self._rows -= scores.rows
                self.submit()
        raise StopAsyncIteration


class _SharedScores:
    """The scores of a submitted sequence, read once for each text that it is a part of.

    ticket: set once it is submitted. readers: texts that have yet to read them to the end.
    """

    __slots__ = ("_kept", "_read", "readers", "rows", "ticket")

    ticket: Ticket

    def __init__(self, rows: int) -> None:
        self.rows, self.readers = rows, 0
        self._kept: list[Scored] = []
        self._read: int | None = None
        """Kept parts that the current reader has read; None while the first one reads."""

    async def read(self) -> Scored | None:
        """The current reader's next part; None once after the last, and the next reader begins."""
        if self._read is None:
            event = await next_event(self.ticket)
            if event is not None:
                assert isinstance(event, Scored)
                if self.readers > 1:
                    self._kept.append(event)
                return event
        elif self._read < len(self._kept):
            self._read += 1
            return self._kept[self._read - 1]
        self.readers -= 1
        self._read = 0
        return None


def sequence_groups(texts: list[TextTokens], top: int, halo: int) -> Iterator[Group]:
    """The sequences that score texts, in the order of the texts.

    Consecutive texts share the prefixes that they have in common. A text in a
    group of its own is cut into spans, and each span is a group.
    """
    first = 0
    while first < len(texts):
        last, rows = first + 1, texts[first].scored
        end = min(len(texts), first + _GROUP_TEXTS)
        while rows < SPAN_ROWS and last < end and texts[last].scored <= SPAN_ROWS:
            rows += texts[last].scored
            last += 1
        if last - first == 1:
            for span in _spans(texts[first], top, halo):
                yield [(first, [span])]
        else:
            prefixed = [Text(text.ids, text.prefix_length) for text in texts[first:last]]
            yield list(enumerate(prefix_tree(prefixed, top, halo), first))
        first = last


def _spans(text: TextTokens, top: int, halo: int) -> Iterator[Sequence]:
    first, end = text.prefix_length - 1, len(text.ids) - 1
    for row in range(first, end, SPAN_ROWS):
        begin = max(0, row - halo)
        tokens = text.ids[begin : min(row + SPAN_ROWS, end) + 1]
        yield Sequence(tokens, score_from=row - begin, top=top)


async def _with_cache(text: TextTokens, parts: list[Scored]) -> Scored:
    """All scores of a text, with the cache."""
    logprobs, ids = np.concatenate([part.logprobs for part in parts]), text.cache_text
    if len(ids) <= BLOCK:  # takes a few milliseconds
        return Scored(with_cache(ids, logprobs), None)
    return Scored(await asyncio.to_thread(with_cache, ids, logprobs), None)


async def next_event(ticket: Ticket) -> Scored | Distribution | Generated | None:
    """A ticket's next event, None for the last. Raises EngineError, NotReadyError."""
    event = await ticket.events.get()
    if isinstance(event, Failed):
        raise failure(event)
    return None if isinstance(event, Finished) else event


def failure(event: Failed) -> Exception:
    """The exception that an event stands for."""
    if event.retry_seconds is not None:
        return OverloadError(event.message, event.retry_seconds)
    return (NotReadyError if event.stopped else EngineError)(event.message)
