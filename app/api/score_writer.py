"""Scores as JSON: the response of /v1/score and of a line, and the measures of a text."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from fastapi.responses import Response

from app.api import json_stream
from app.api import score_columns as columns
from app.api.http import stream
from app.api.http.deadlines import Deadline, until
from app.lm.texts import TextGroup, TextOrIds, TextTokens, tokens_read
from app.lm.threads import INLINE_CHARACTERS, by_size
from app.text.words import words_of
from app.wire.score import Measures, ScoreRequest
from model.core.graph import Floats, Indices
from model.core.measures import Totals

if TYPE_CHECKING:
    from app.engine.sequence import Scored
    from app.lm.model import LanguageModel
    from app.lm.scoring import Scores

Pieces = tuple[int, Iterator[bytes]]
"""Pieces of a document, and the characters or tokens that they are about."""
COST_OF_TEXT = 100
"""Characters that take as long to write as the measures of a text."""


class Writer(ABC):
    """Writes a JSON document while the scores that it is made of arrive."""

    @property
    @abstractmethod
    def entries(self) -> int:
        """Entries of all lists."""

    @abstractmethod
    async def next_pieces(self, scores: Scores) -> Pieces | None:
        """Awaits the next scores of its texts; None after the last pieces."""

    async def document(self, scores: Scores) -> bytes:
        """The complete document. Reads the scores of its texts alone from `scores`."""
        parts: list[bytes] = []
        inline = 0
        while (pieces := await self.next_pieces(scores)) is not None:
            size, iterator = pieces
            if size <= INLINE_CHARACTERS:
                parts.append(b"".join(iterator))
                inline += size + COST_OF_TEXT
                if inline > INLINE_CHARACTERS:  # the scores of many texts may be there at once
                    inline = 0
                    await asyncio.sleep(0)
            else:
                parts.append(await asyncio.to_thread(b"".join, iterator))
        return b"".join(parts)

    async def parts(self, scores: Scores) -> AsyncGenerator[bytes]:
        """The same in parts; pieces about long texts are made on another thread, one by one."""
        while (pieces := await self.next_pieces(scores)) is not None:
            size, iterator = pieces
            while (part := await by_size(size, partial(next, iterator, None))) is not None:
                yield part


async def respond(writer: Writer, scores: Scores, deadline: Deadline) -> Response:
    """The response with a document, sent in its parts if its lists have many entries.

    An error before the first part is a status.
    """
    if writer.entries <= stream.MAX_BUFFERED_ENTRIES:
        with scores:
            return Response(await writer.document(scores), media_type="application/json")
    async with AsyncExitStack() as held:
        held.enter_context(scores)
        parts = until(deadline, writer.parts(scores))
        await held.enter_async_context(aclosing(parts))
        first = await anext(parts)
        return stream.HoldingResponse(
            stream.after(first, parts), "application/json", held.pop_all()
        )


class ScoreWriter(Writer):
    """Writes a `wire.score.ScoreResponse`."""

    def __init__(self, model: LanguageModel, texts: list[TextTokens], body: ScoreRequest) -> None:
        self.model, self.texts, self.body = model, texts, body
        self.detailed = body.detail == "tokens"
        self.from_ids = not isinstance(body.input[0], str)
        self._totals: Totals | None = None
        self._index = 0
        """The text whose scores come next."""
        self._scored = 0
        """Tokens of it that are scored."""
        self._logprobs: list[Floats] = []
        self._ranks: list[Indices] = []

    @property
    def entries(self) -> int:
        """Entries of all lists."""
        return sum(text.scored for text in self.texts) * entries_per_token(self.body)

    @property
    def tokens(self) -> int:
        """Tokens read: the context once, and those of the texts."""
        return tokens_read(self.texts)

    async def next_pieces(self, scores: Scores) -> Pieces | None:
        """What can be written with the next part of the scores."""
        if self._index == len(self.texts):
            return None
        _, part = await anext(scores)
        return self.texts[self._index].size, self._add(part)

    def _add(self, part: Scored) -> Iterator[bytes]:
        """Writes the next scores of a text, with the last part all of it."""
        text, first = self.texts[self._index], not self._scored
        self._scored += len(part.logprobs)
        if first:
            yield from self._open_text(text)
        self._logprobs.append(part.logprobs)
        if part.ranks is not None:
            self._ranks.append(part.ranks)
        if self.detailed and self.body.top_logprobs:
            count = self.body.top_logprobs
            yield columns.alternatives(self.model, text, part, count, first=first)
        if self._scored == text.scored:
            yield from self._close_text(text, np.concatenate(self._logprobs))
            self._index, self._scored = self._index + 1, 0
            self._logprobs, self._ranks = [], []

    def _open_text(self, text: TextTokens) -> Iterator[bytes]:
        """What is known of a text before scoring."""
        if self._index:
            yield json_stream.SEPARATOR
        else:
            yield open_list(self.model)
        yield json_stream.open_object({"index": self._index})
        if self.from_ids and (self.detailed or self.body.words):
            yield json_stream.members({"text": text.text})
        if self.detailed:
            yield from columns.tokens(self.model, text)

    def _close_text(self, text: TextTokens, logprobs: Floats) -> Iterator[bytes]:
        """What is known of a text once all of it is scored."""
        if self.detailed:
            if self.body.top_logprobs:
                yield json_stream.CLOSE_ARRAY
            yield from columns.logprobs(text, logprobs)
            if self.body.ranks:
                yield from columns.ranks(text, np.concatenate(self._ranks))
        if self.body.words:
            words = words_of(text.text, text.encoded)
            yield from columns.words(self.model, text, words, logprobs)
        totals = self.model.totals(text, logprobs)
        self._totals = totals if self._totals is None else self._totals + totals
        yield json_stream.close_object(text_measures(text, totals))
        if text is self.texts[-1]:
            yield self._end(self._totals)

    def _end(self, totals: Totals) -> bytes:
        tail = {
            "totals": measures_of(totals),
            "usage": usage_of(self.tokens),
            "system_fingerprint": self.model.fingerprint,
        }
        return json_stream.CLOSE_ARRAY + json_stream.close_object(tail)


async def tokenise(
    model: LanguageModel, inputs: Sequence[TextOrIds], body: ScoreRequest
) -> list[TextTokens]:
    """Inputs as tokens, with the options of a body."""
    model.settings.check_limit("input", len(inputs), "max_request_texts")
    (texts,) = await model.tokenise(
        [TextGroup(inputs, body.context)], add_eos=body.add_eos, start=body.add_special_tokens
    )
    return texts


def alternatives_wanted(body: ScoreRequest) -> int:
    """Alternatives that scoring must find; ranks need at least one alternative."""
    return max(body.top_logprobs, int(body.ranks))


def entries_per_token(body: ScoreRequest) -> int:
    """List entries that a token has in the answer, at most."""
    return (1 + body.top_logprobs if body.detail == "tokens" else 0) + body.words


def open_list(model: LanguageModel) -> bytes:
    """The beginning of a response of which `data` is a list."""
    members = {"object": "list", "model": model.name}
    return json_stream.open_object(members) + json_stream.open_array("data")


def usage_of(tokens: int) -> dict[str, int]:
    """The fields of `wire.fields.Usage`."""
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def text_measures(text: TextTokens, totals: Totals) -> dict[str, object]:
    """The measures of one text."""
    return {**measures_of(totals), "eos_scored": text.eos_scored}


def measures_of(totals: Totals) -> dict[str, object]:
    """The fields of `wire.score.Measures`."""
    return {name: getattr(totals, name) for name in Measures.model_fields}
