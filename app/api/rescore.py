"""POST /v1/rescore: n-best lists ranked by the model's log-probability and their own scores."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fastapi import Request
from fastapi.responses import Response

from app.api import json_stream
from app.api import score_columns as columns
from app.api.http.body import SCORED_PER_BYTE, read, unless_gone
from app.api.http.deadlines import Deadline
from app.api.score_writer import (
    COST_OF_TEXT,
    Pieces,
    Writer,
    open_list,
    respond,
    text_measures,
    usage_of,
)
from app.lm.texts import TextGroup, TextTokens, tokens_read
from app.wire.rescore import Hypothesis, RescoreRequest
from model.core.graph import Floats
from model.core.measures import Totals

if TYPE_CHECKING:
    from app.lm.model import LanguageModel
    from app.lm.scoring import Scores
_READ_TOGETHER = 256
"""Texts whose scores are read before others may use the event loop."""


async def rescore(request: Request) -> Response:
    """Hypotheses of many utterances, ranked by prior + weight * ln p + length_weight * words.

    Beginnings that hypotheses share are computed once.
    """
    deadline = Deadline(request)
    body = await read(request, RescoreRequest, deadline, tokens_per_byte=SCORED_PER_BYTE)
    catalog = request.app.state.catalog
    catalog.settings.check_limit("utterances", len(body.utterances), "max_request_texts")
    hypotheses = sum(len(utterance.hypotheses) for utterance in body.utterances)
    catalog.settings.check_limit("utterances", hypotheses, "max_request_hypotheses")
    groups = [
        TextGroup(
            [hypothesis.text for hypothesis in utterance.hypotheses],
            utterance.context,
            f"utterances.{n}.hypotheses",
            f"utterances.{n}.context",
        )
        for n, utterance in enumerate(body.utterances)
    ]
    with unless_gone(request), deadline.limit(body.timeout_seconds):
        model = await catalog.loaded(body.model)
        writer = _RescoreWriter(model, await model.tokenise(groups, add_eos=body.add_eos), body)
        scores = model.score(writer.texts, 0, cache=body.cache, bulk=body.priority > 0)
        scores.submit()
        return await respond(writer, scores, deadline)


class _RescoreWriter(Writer):
    """Writes a `wire.rescore.RescoreResponse`, an utterance at a time."""

    def __init__(
        self, model: LanguageModel, groups: list[list[TextTokens]], body: RescoreRequest
    ) -> None:
        self.model, self.groups, self.body = model, groups, body
        self.texts = [text for group in groups for text in group]
        self._index = 0

    @property
    def entries(self) -> int:
        """Entries of all lists."""
        return sum(text.scored for text in self.texts) if self.body.detail == "tokens" else 0

    async def next_pieces(self, scores: Scores) -> Pieces | None:
        """The next utterance."""
        if self._index == len(self.groups):
            return None
        texts = self.groups[self._index]
        logprobs: list[Floats] = []
        for text in texts:
            logprobs.append(await scores.read_text(text))
            if len(logprobs) % _READ_TOGETHER == 0:  # equal texts have their scores at once
                await asyncio.sleep(0)
        self._index += 1
        size = sum(text.size + COST_OF_TEXT for text in texts)
        return size, self._utterance(self._index - 1, logprobs)

    def _utterance(self, index: int, logprobs: list[Floats]) -> Iterator[bytes]:
        """An n-best list, best first; equal scores stay in the order of the request."""
        texts, hypotheses = self.groups[index], self.body.utterances[index].hypotheses
        totals = [self.model.totals(t, values) for t, values in zip(texts, logprobs, strict=True)]
        scores = [self._score(h, t) for h, t in zip(hypotheses, totals, strict=True)]
        yield json_stream.SEPARATOR if index else open_list(self.model)
        yield json_stream.open_object({"index": index}) + json_stream.open_array("hypotheses")
        for rank, n in enumerate(sorted(range(len(scores)), key=lambda n: -scores[n])):
            if rank:
                yield json_stream.SEPARATOR
            facts = {"index": n, "score": scores[n], "prior": hypotheses[n].prior}
            yield json_stream.open_object({**facts, **text_measures(texts[n], totals[n])})
            if self.body.detail == "tokens":
                yield from columns.tokens(self.model, texts[n])
                yield from columns.logprobs(texts[n], logprobs[n])
            yield json_stream.CLOSE_OBJECT
        yield json_stream.CLOSE_ARRAY + json_stream.CLOSE_OBJECT
        if index == len(self.groups) - 1:
            tail = {
                "usage": usage_of(sum(map(tokens_read, self.groups))),
                "system_fingerprint": self.model.fingerprint,
            }
            yield json_stream.CLOSE_ARRAY + json_stream.close_object(tail)

    def _score(self, hypothesis: Hypothesis, totals: Totals) -> float:
        return (
            (hypothesis.prior or 0.0)
            + self.body.weight * totals.logprob_sum
            + self.body.length_weight * totals.word_count
        )
