"""Scores as JSON: the response of /v1/score, also of a line, and the measures of any text."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING

import numpy as np

from app.api import json_stream
from app.api import score_columns as columns
from app.lm.texts import TextTokens, tokens_read
from app.lm.threads import parts_by_size
from app.text.words import words_of
from app.wire.score import ScoreRequest
from model.core.graph import Floats, Indices
from model.core.measures import Totals

if TYPE_CHECKING:
    from app.lm.model import LanguageModel
    from app.lm.scoring import ScoredPart, Scores


class ScoreWriter:
    """Writes a `wire.score.ScoreResponse` while the scores of its texts arrive."""

    def __init__(self, model: LanguageModel, texts: list[TextTokens], body: ScoreRequest) -> None:
        self.model, self.texts, self.body = model, texts, body
        self.detailed = body.detail == "tokens"
        self.from_ids = not isinstance(body.input[0], str)
        self.totals = Totals()
        self._index = 0
        """The text whose scores come next."""
        self._logprobs: list[Floats] = []
        self._ranks: list[Indices] = []

    @property
    def entries(self) -> int:
        """Entries of all lists."""
        return sum(text.count for text in self.texts) * entries_per_token(self.body)

    @property
    def tokens(self) -> int:
        """Tokens read: the context once, and those of the texts."""
        return tokens_read(self.texts)

    async def parts(self, scores: Scores) -> AsyncGenerator[bytes]:
        """The document, in parts. Takes only the scores of its texts; more may come after them."""
        for text in self.texts:
            scored = 0
            while scored < text.count:
                _, part = await anext(scores)
                scored += len(part.logprobs)
                pieces = self._add(part, last=scored == text.count)
                async for piece in parts_by_size(text.size, pieces):
                    yield piece
        yield json_stream.CLOSE_ARRAY + json_stream.close_object(
            {
                "totals": measures_of(self.totals),
                "usage": usage_of(self.tokens),
                "system_fingerprint": self.model.fingerprint,
            }
        )

    def _add(self, part: ScoredPart, *, last: bool) -> Iterator[bytes]:
        """What can be written with the next scores of a text; all of it with the last."""
        text, first = self.texts[self._index], not self._logprobs
        if first:
            yield from self._open_text(text)
        self._logprobs.append(part.logprobs)
        if part.ranks is not None:
            self._ranks.append(part.ranks)
        if self.detailed and self.body.top_logprobs:
            count = self.body.top_logprobs
            yield columns.alternatives(self.model, text, part, count, first=first)
        if last:
            yield from self._close_text(text, np.concatenate(self._logprobs))
            self._index += 1
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
        self.totals += totals
        yield json_stream.close_object(text_measures(text, totals))


async def then_close(parts: AsyncGenerator[bytes], scores: Scores) -> AsyncGenerator[bytes]:
    """The parts of a document; after them, however they end, the scores are closed."""
    with scores:
        async with aclosing(parts):
            async for part in parts:
                yield part


def alternatives_wanted(body: ScoreRequest) -> int:
    """Alternatives that scoring must find; ranks come with the distributions of one."""
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
