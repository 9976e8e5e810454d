"""POST /v1/score: log-probabilities of every token of texts."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field

import numpy as np
import orjson
from fastapi import Request
from fastapi.responses import Response

from app.api import score_columns as columns
from app.api.http.body import read, unless_gone
from app.api.http.stream import json_response
from app.lm.model import INLINE_CHARACTERS, LanguageModel, ScoredPart, TextTokens
from app.text.words import Words, words_of
from app.wire.score import ScoreRequest
from model.core.graph import Floats, Indices
from model.core.measures import Totals


async def score(request: Request) -> Response:
    """The natural log-probability of every token of each text, and perplexities.

    The first token's probability is given the start symbol, or the context. Texts are
    independent of each other. See `docs/reference/api.md` for what is counted.
    """
    catalog = request.app.state.catalog
    settings = catalog.settings
    catalog.check()
    body = await read(request, ScoreRequest, settings)
    model = await catalog.loaded(body.model)
    settings.check_limit("top_logprobs", body.top_logprobs, "max_top_logprobs")
    answer = _answer_short if _short(body) else _answer
    return await unless_gone(request, answer(model, body))


def _short(body: ScoreRequest) -> bool:
    """Whether it is about one text of few characters or ids."""
    return len(body.input) == 1 and len(body.input[0]) + len(body.context) <= INLINE_CHARACTERS


async def _answer_short(model: LanguageModel, body: ScoreRequest) -> Response:
    texts = await model.tokenise(
        body.input, body.context, add_eos=body.add_eos, start=body.add_special_tokens
    )
    answer = Answer(model, texts, body)
    found = await model.score_one(texts[0], answer.top, cache=body.cache)
    return Response(answer.short(found), media_type="application/json")


async def _answer(model: LanguageModel, body: ScoreRequest) -> Response:
    texts = await model.tokenise(
        body.input, body.context, add_eos=body.add_eos, start=body.add_special_tokens
    )
    answer = Answer(model, texts, body)
    found = model.score(texts, answer.top, cache=body.cache)
    return await json_response(answer.parts(found), answer.entries)


@dataclass(slots=True)
class _Text:
    """The scores of the text that is being written."""

    scored: int = 0
    logprobs: list[Floats] = field(default_factory=list)
    ranks: list[Indices] = field(default_factory=list)


class Answer:
    """The response's JSON, in parts: a text's columns, then its sums."""

    def __init__(self, model: LanguageModel, texts: list[TextTokens], body: ScoreRequest) -> None:
        self.model, self.texts, self.body = model, texts, body
        self.detailed = body.detail == "tokens"
        self.from_ids = not isinstance(body.input[0], str)
        self.totals = Totals()

    @property
    def entries(self) -> int:
        """Entries of all lists."""
        tokens = sum(text.count for text in self.texts)
        of_each = (1 + self.body.top_logprobs if self.detailed else 0) + self.body.words
        return tokens * of_each

    @property
    def top(self) -> int:
        """Alternatives that scoring must find; ranks come with the distributions of one."""
        return max(self.body.top_logprobs, int(self.body.ranks))

    async def parts(self, found: AsyncGenerator[tuple[int, ScoredPart]]) -> AsyncGenerator[bytes]:
        """Chunks of the document, made of what `LanguageModel.score` gives for the texts."""
        current = _Text()
        async with aclosing(found) as scores:
            async for index, part in scores:
                text = self.texts[index]
                if not current.scored:  # the first part: the engine has taken the work
                    yield self._head(index)
                    for piece in self._known(text):
                        yield piece
                yield self._taken(text, part, current)
                if current.scored == text.count:
                    logprobs = np.concatenate(current.logprobs)
                    totals = await self.model.totals(text, logprobs)
                    words = await self.model.words(text) if self.body.words else None
                    for piece in self._found(text, logprobs, current.ranks, words):
                        yield piece
                    yield self._sums(text, totals)
                    current = _Text()
        yield b"]," + self._tail()

    def short(self, found: list[ScoredPart]) -> bytes:
        """The document of one text of few characters."""
        (text,) = self.texts
        current = _Text()
        pieces = [self._head(0), *self._known(text)]
        pieces += [self._taken(text, part, current) for part in found]
        logprobs = np.concatenate(current.logprobs)
        words = words_of(text.text, text.encoded) if self.body.words else None
        pieces += self._found(text, logprobs, current.ranks, words)
        pieces.append(self._sums(text, self.model.totals_of(text, logprobs)))
        return b"".join([*pieces, b"],", self._tail()])

    def _head(self, index: int) -> bytes:
        """What stands in front of a text."""
        begun = b'{"index":%d' % index
        if index:
            return b"," + begun
        return b'{"object":"list","model":' + orjson.dumps(self.model.name) + b',"data":[' + begun

    def _taken(self, text: TextTokens, part: ScoredPart, current: _Text) -> bytes:
        """Takes the next scores; what can be written of them at once."""
        first = not current.scored
        current.logprobs.append(part.logprobs)
        if part.ranks is not None:
            current.ranks.append(part.ranks)
        current.scored += len(part.logprobs)
        if not (self.detailed and self.body.top_logprobs):
            return b""
        return columns.alternatives(self.model, text, part, self.body.top_logprobs, first=first)

    def _known(self, text: TextTokens) -> Iterator[bytes]:
        """What is known before scoring."""
        if self.from_ids and (self.detailed or self.body.words):
            yield b',"text":' + orjson.dumps(text.text)
        if self.detailed:
            yield from columns.tokens(self.model, text)

    def _found(
        self, text: TextTokens, logprobs: Floats, ranks: list[Indices], words: Words | None
    ) -> Iterator[bytes]:
        """What is known once all is scored."""
        if self.detailed:
            if self.body.top_logprobs:
                yield b"]"
            yield from columns.logprobs(text, logprobs)
            if self.body.ranks:
                yield from columns.ranks(text, np.concatenate(ranks))
        if words is not None:
            yield from columns.words(self.model, text, words, logprobs)

    def _sums(self, text: TextTokens, totals: Totals) -> bytes:
        self.totals += totals
        return b"," + orjson.dumps({**measures_of(totals), "eos_scored": text.eos_scored})[1:]

    @property
    def tokens(self) -> int:
        """Tokens read: the context once, and those that are scored."""
        return self.texts[0].context + sum(text.read for text in self.texts)

    def _tail(self) -> bytes:
        tokens = self.tokens
        tail = {
            "totals": measures_of(self.totals),
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "system_fingerprint": self.model.fingerprint,
        }
        return orjson.dumps(tail)[1:]


def measures_of(totals: Totals) -> dict[str, object]:
    """The fields of `wire.score.Measures`."""
    return {
        "logprob_sum": totals.logprob_sum,
        "token_count": totals.token_count,
        "unknown_count": totals.unknown_count,
        "word_count": totals.word_count,
        "byte_count": totals.byte_count,
        "perplexity": totals.perplexity,
        "word_perplexity": totals.word_perplexity,
        "bits_per_byte": totals.bits_per_byte,
        "fluency": totals.fluency,
    }
