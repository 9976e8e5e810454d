"""POST /v1/rescore: n-best lists ranked by the model's log-probability and what they bring."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

import numpy as np
import orjson
from fastapi import Request
from fastapi.responses import Response

from app.api import score_columns as columns
from app.api.http.body import read, unless_gone
from app.api.http.stream import json_response
from app.api.score import measures_of
from app.lm.model import LanguageModel, TextGroup, TextTokens
from app.wire.rescore import Hypothesis, RescoreRequest
from model.core.graph import Floats
from model.core.measures import Totals


async def rescore(request: Request) -> Response:
    """Hypotheses of many utterances, ranked by prior + weight * ln p + length_weight * words.

    Beginnings that hypotheses share are computed once.
    """
    catalog = request.app.state.catalog
    catalog.check()
    body = await read(request, RescoreRequest, catalog.settings)
    catalog.settings.check_limit("utterances", len(body.utterances), "max_request_texts")
    return await unless_gone(request, _answer(await catalog.loaded(body.model), body))


async def _answer(model: LanguageModel, body: RescoreRequest) -> Response:
    groups = [
        TextGroup(
            [hypothesis.text for hypothesis in utterance.hypotheses],
            utterance.context,
            f"utterances.{n}.hypotheses",
            f"utterances.{n}.context",
        )
        for n, utterance in enumerate(body.utterances)
    ]
    answer = _Answer(model, await model.tokenise_groups(groups, add_eos=body.add_eos), body)
    return await json_response(answer.parts(), answer.entries)


class _Answer:
    """The response's JSON, an utterance at a time."""

    def __init__(
        self, model: LanguageModel, groups: list[list[TextTokens]], body: RescoreRequest
    ) -> None:
        self.model, self.groups, self.body = model, groups, body
        self.texts = [text for group in groups for text in group]

    @property
    def entries(self) -> int:
        """Entries of all lists."""
        return sum(text.count for text in self.texts) if self.body.detail == "tokens" else 0

    async def parts(self) -> AsyncGenerator[bytes]:
        """Chunks of the document, the first once the engine has taken the work."""
        yielded = scored = 0
        found: list[Floats] = []
        current: list[Floats] = []
        head = b'{"object":"list","model":' + orjson.dumps(self.model.name) + b',"data":['
        async with aclosing(self.model.score(self.texts, 0, cache=self.body.cache)) as scores:
            async for index, part in scores:
                if head:
                    yield head
                    head = b""
                current.append(part.logprobs)
                scored += len(part.logprobs)
                if scored < self.texts[index].count:
                    continue
                found.append(np.concatenate(current))
                current, scored = [], 0
                if len(found) == len(self.groups[yielded]):
                    async for piece in self._utterance(yielded, found):
                        yield piece
                    yielded, found = yielded + 1, []
        tokens = sum(group[0].context + sum(text.read for text in group) for group in self.groups)
        tail = {
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "system_fingerprint": self.model.fingerprint,
        }
        yield b"]," + orjson.dumps(tail)[1:]

    async def _utterance(self, index: int, found: list[Floats]) -> AsyncGenerator[bytes]:
        """An n-best list, best first; of equal scores the one that was first."""
        texts, hypotheses = self.groups[index], self.body.utterances[index].hypotheses
        totals = [await self.model.totals(t, f) for t, f in zip(texts, found, strict=True)]
        scores = [self._score(h, t) for h, t in zip(hypotheses, totals, strict=True)]
        yield (b"," if index else b"") + b'{"index":%d,"hypotheses":[' % index
        for rank, place in enumerate(sorted(range(len(scores)), key=lambda n: -scores[n])):
            facts = {"index": place, "score": scores[place], "prior": hypotheses[place].prior}
            measures = {**measures_of(totals[place]), "eos_scored": texts[place].eos_scored}
            yield (b"," if rank else b"") + orjson.dumps({**facts, **measures})[:-1]
            for piece in self._lists(texts[place], found[place]):
                yield piece
            yield b"}"
        yield b"]}"

    def _score(self, hypothesis: Hypothesis, totals: Totals) -> float:
        return (
            (hypothesis.prior or 0.0)
            + self.body.weight * totals.logprob_sum
            + self.body.length_weight * totals.word_count
        )

    def _lists(self, text: TextTokens, logprobs: Floats) -> Iterator[bytes]:
        if self.body.detail == "tokens":
            yield from columns.tokens(self.model, text)
            yield from columns.logprobs(text, logprobs)
