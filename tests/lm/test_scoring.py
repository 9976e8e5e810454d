"""Texts to sequences and events to scores, with an engine that computes nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

import app.lm.scoring
from app.engine.admission import Admission
from app.engine.engine import Engine
from app.engine.rate import Rate
from app.engine.sequence import Failed, Finished, Scored, Sequence
from app.engine.tickets import Outstanding, Ticket
from app.errors import EngineError, NotReadyError, OverloadError
from app.lm.scoring import Scores, sequence_groups
from app.lm.texts import TextGroup, TextReader, TextTokens
from app.metrics import Metrics
from app.settings import Settings
from model.core.tokenizer import Tokenizer

HALO = 12


class Loop:
    """Takes sequences and gives scores when told to: of a token its own id."""

    def __init__(self) -> None:
        self.rate, self.outstanding = Rate(100.0), Outstanding()
        self.submitted: list[Ticket] = []
        self.cancelled: list[Ticket] = []
        self.stopped = False
        self.part_rows = 3

    def submit(self, request: Any, tickets: list[Ticket]) -> None:
        if self.stopped:
            raise NotReadyError("stopped")
        self.submitted += tickets
        self.outstanding.add(request, tickets, HALO)
        for ticket in tickets:
            self._run(ticket)

    def cancel(self, tickets: list[Ticket]) -> None:
        self.cancelled += tickets
        for ticket in tickets:
            if ticket.due:
                self.outstanding.remove(ticket)

    def _run(self, ticket: Ticket) -> None:
        sequence = ticket.sequence
        ids = sequence.tokens[sequence.score_from + 1 :].astype(np.float32)
        for first in range(0, len(ids), self.part_rows):
            ticket.events.put_nowait(Scored(ids[first : first + self.part_rows], None))
        ticket.events.put_nowait(Finished())


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def admission(loop: Loop) -> Admission:
    return Admission(Engine([loop]), 10.0, Metrics())  # type: ignore[list-item]


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans of 10 rows, windows of 25."""
    monkeypatch.setattr(app.lm.scoring, "SPAN_ROWS", 10)
    monkeypatch.setattr(app.lm.scoring, "WINDOW_ROWS", 25)
    monkeypatch.setattr(app.lm.scoring, "_LEAST_ROWS", 1)


def texts_of(tokenizer: Tokenizer, lists: list[list[int]], context: str = "") -> list[TextTokens]:
    reader = TextReader(tokenizer, Settings(), HALO)
    (texts,) = reader.read([TextGroup(lists, context)], add_eos=False)
    return texts


def scores_of(loop: Loop, admission: Admission, texts: list[TextTokens], **options: Any) -> Scores:
    groups = sequence_groups(texts, 0, HALO)
    return Scores(admission.engine, admission, texts, groups, **options)


LISTS = [[5, 6, 7], [5, 6, 8, 9], list(range(2, 60)), [5], [5, 6, 7], list(range(100, 135))]


@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize("context", ["", "What did he say? "])
def test_every_token_is_scored_once_after_what_it_may_depend_on(
    tokenizer: Tokenizer, context: str
) -> None:
    texts = texts_of(tokenizer, [list(range(n % 7 + 2, n)) for n in range(12, 400, 37)], context)
    scored: list[list[int]] = [[] for _ in texts]
    for group in sequence_groups(texts, 0, HALO):
        for index, path in group:
            for sequence in path:
                ids = sequence.tokens.tolist()
                scored[index] += ids[sequence.score_from + 1 :]
                whole = texts[index].ids.tolist()
                before = ids[: sequence.score_from + 1]
                end = whole.index(ids[-1], len(before) - 1) + 1
                assert whole[end - len(ids) : end] == ids
                first = end - len(ids)
                assert first == 0 or len(before) == HALO + 1
    assert scored == [text.text_ids.tolist() for text in texts]


@pytest.mark.usefixtures("windows")
def test_scores_come_in_the_order_of_the_texts_and_leave_nothing(
    tokenizer: Tokenizer, loop: Loop, admission: Admission
) -> None:
    async def run() -> None:
        found: list[list[float]] = [[] for _ in LISTS]
        last = 0
        with scores_of(loop, admission, texts_of(tokenizer, LISTS)) as scores:
            async for index, part in scores:
                assert index >= last
                last = index
                found[index] += part.logprobs.tolist()
        assert found == LISTS
        assert admission.tokens == 0
        assert loop.cancelled == loop.submitted

    asyncio.run(run())


@pytest.mark.usefixtures("windows")
def test_no_more_is_submitted_than_the_window_has_room_for(
    tokenizer: Tokenizer, loop: Loop, admission: Admission
) -> None:
    async def run() -> None:
        texts = texts_of(tokenizer, [list(range(2, 202))])
        with scores_of(loop, admission, texts) as scores:
            scores.submit()
            scores.submit()
            assert sum(t.sequence.rows for t in loop.submitted[:-1]) < 25
            assert sum(t.sequence.rows for t in loop.submitted) >= 25
            first, read = len(loop.submitted), 0
            async for _, part in scores:
                read += len(part.logprobs)
                assert len(loop.submitted) <= first + read // 10
        assert len(loop.submitted) == 20

    asyncio.run(run())


def test_texts_that_begin_alike_share_a_sequence(
    tokenizer: Tokenizer, loop: Loop, admission: Admission
) -> None:
    shared = list(range(50, 90))
    lists = [[*shared, n] for n in (3, 4, 5)]

    async def run() -> None:
        texts = texts_of(tokenizer, lists)
        with scores_of(loop, admission, texts) as scores:
            assert [(await scores.read_text(text)).tolist() for text in texts] == lists
        assert sum(t.sequence.tokens.tolist()[1:] == shared for t in loop.submitted) == 1
        rows = sum(t.sequence.rows - t.sequence.score_from for t in loop.submitted)
        assert rows == len(shared) + len(lists)

    asyncio.run(run())


def test_with_the_cache_a_text_has_its_scores_at_once(
    tokenizer: Tokenizer, loop: Loop, admission: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []

    def with_cache(ids: Any, logprobs: Any) -> Any:
        seen.append(ids.tolist())
        return logprobs + 1

    monkeypatch.setattr(app.lm.scoring, "with_cache", with_cache)
    lists = [list(range(2, 12)), [5]]

    async def run() -> None:
        with scores_of(loop, admission, texts_of(tokenizer, lists), cache=True) as scores:
            parts = [(index, part.logprobs.tolist()) async for index, part in scores]
        assert parts == [(n, [token + 1 for token in ids]) for n, ids in enumerate(lists)]

    asyncio.run(run())
    assert seen == [[tokenizer.start_id, *ids] for ids in lists]


def test_a_request_that_is_refused_holds_nothing_and_may_try_again(
    tokenizer: Tokenizer, loop: Loop, admission: Admission
) -> None:
    async def run() -> None:
        with scores_of(loop, admission, texts_of(tokenizer, [[5, 6, 7]])) as scores:
            loop.outstanding.due = 998
            with pytest.raises(OverloadError):
                scores.submit()
            loop.outstanding.due = 0
            assert not loop.submitted
            scores.submit()
            assert admission.tokens == 3

    asyncio.run(run())
    assert admission.tokens == 0


def test_an_engine_that_takes_nothing_leaves_nothing_admitted(
    tokenizer: Tokenizer, loop: Loop, admission: Admission
) -> None:
    loop.stopped = True

    async def run() -> None:
        scores = scores_of(loop, admission, texts_of(tokenizer, [[5, 6, 7]]))
        with pytest.raises(NotReadyError):
            scores.submit()
        assert admission.tokens == 0

    asyncio.run(run())


@pytest.mark.parametrize(("stopped", "kind"), [(True, NotReadyError), (False, EngineError)])
def test_a_failure_is_raised_where_the_scores_would_come(
    tokenizer: Tokenizer, loop: Loop, admission: Admission, stopped: bool, kind: type[Exception]
) -> None:
    def fail(ticket: Ticket) -> None:
        ticket.events.put_nowait(Failed("why", stopped=stopped))

    loop._run = fail  # type: ignore[method-assign]

    async def run() -> None:
        scores = scores_of(loop, admission, texts_of(tokenizer, [[5, 6, 7]]))
        with scores, pytest.raises(kind, match="why"):
            await anext(scores)

    asyncio.run(run())


def test_a_sequence_that_is_not_read_to_its_end_is_cancelled(
    tokenizer: Tokenizer, loop: Loop, admission: Admission
) -> None:
    async def run() -> None:
        with scores_of(loop, admission, texts_of(tokenizer, [list(range(2, 30))])) as scores:
            await anext(scores)
        assert [t.sequence for t in loop.cancelled] == [t.sequence for t in loop.submitted]
        assert all(isinstance(t.sequence, Sequence) for t in loop.cancelled)

    asyncio.run(run())
