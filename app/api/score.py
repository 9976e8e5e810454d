"""POST /v1/score: log-probabilities of every token of texts."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field

import numpy as np
import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.api import limits
from app.api.body import documented, read, unless_gone
from app.api.stream import HoldingResponse
from app.lm import LanguageModel, ScoredPart, TextTokens
from app.wire.score import ScoreRequest, ScoreResponse
from model.graph import Floats
from model.measures import Totals

router = APIRouter()
_JSON = "application/json"
WHOLE_TOKENS = 50_000
"""Answers to more tokens are written as they come, instead of being held whole."""
_SLICE = 4096


@router.post(
    "/v1/score",
    summary="Score texts",
    response_model=ScoreResponse,
    openapi_extra=documented(ScoreRequest),
)
async def score(request: Request) -> Response:
    """The natural log-probability of every token of each text, and perplexities.

    The first token's probability is given the start symbol, or the context. Texts are
    independent of each other. See `docs/reference/api.md` for what is counted.
    """
    catalog = request.app.state.catalog
    settings = catalog.settings
    model = catalog.get(None)
    body = await read(request, ScoreRequest, settings.max_request_bytes)
    model = catalog.get(body.model)
    limits.check(settings, "top_logprobs", body.top_logprobs, "max_top_logprobs")
    return await unless_gone(request, _answer(model, body))


async def _answer(model: LanguageModel, body: ScoreRequest) -> Response:
    texts = await model.tokenise(body.input, body.context, add_eos=body.add_eos)
    answer = Answer(model, texts, body)
    size = sum(text.count for text in texts) * (1 + body.top_logprobs)
    parts = answer.parts(model.score(texts, body.top_logprobs))
    # the first part is written when the engine has taken the work, so a refusal is a status
    first = await anext(parts)
    if size > WHOLE_TOKENS and body.detail == "tokens":
        held = AsyncExitStack()
        await held.enter_async_context(aclosing(parts))
        return HoldingResponse(_after(first, parts), _JSON, held)
    async with aclosing(parts):
        return Response(first + b"".join([part async for part in parts]), media_type=_JSON)


async def _after(first: bytes, parts: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    yield first
    async for part in parts:
        yield part


@dataclass(slots=True)
class _Text:
    """The scores of the text that is being written."""

    scored: int = 0
    logprobs: list[Floats] = field(default_factory=list)


class Answer:
    """The response's JSON, in parts: a text's columns, then its sums."""

    def __init__(self, model: LanguageModel, texts: list[TextTokens], body: ScoreRequest) -> None:
        self.model, self.texts, self.body = model, texts, body
        self.detailed = body.detail == "tokens"
        self.totals = Totals()

    async def parts(self, found: AsyncGenerator[tuple[int, ScoredPart]]) -> AsyncGenerator[bytes]:
        """Chunks of the document, made of what `LanguageModel.score` gives for the texts."""
        head = b'{"object":"list","model":' + orjson.dumps(self.model.name) + b',"data":['
        current = _Text()
        async with aclosing(found) as scores:
            async for index, part in scores:
                if not current.scored:
                    yield (b"," if index else head) + b'{"index":%d' % index
                    for piece in self._columns(self.texts[index]):
                        yield piece
                for piece in self._alternatives(part, first=not current.scored):
                    yield piece
                current.logprobs.append(part.logprobs)
                current.scored += len(part.logprobs)
                if current.scored == self.texts[index].count:
                    logprobs = np.concatenate(current.logprobs)
                    current = _Text()
                    totals = await self.model.totals(self.texts[index], logprobs)
                    for piece in self._sums(self.texts[index], totals, logprobs):
                        yield piece
        yield b"]," + self._tail()

    def _columns(self, text: TextTokens) -> Iterator[bytes]:
        """What is known before scoring: tokens, ids and offsets."""
        if not self.detailed:
            return
        encoded, end = text.encoded, len(text.text)
        ids = text.ids[text.given :]
        cuts = np.concatenate([[0], encoded.cuts])
        spans = np.stack([encoded.starts, encoded.ends], 1)
        if text.eos_scored:
            spans = np.concatenate([spans, [[end, end]]])

        def tokens(first: int, last: int) -> bytes:
            places = cuts[first : min(last, len(cuts) - 1) + 1].tolist()
            pieces = [text.text[a:b] for a, b in itertools.pairwise(places)]
            if text.eos_scored and last == len(ids):
                pieces.append(self.model.token_string(int(ids[-1])))
            return orjson.dumps(pieces)

        yield from _column("tokens", len(ids), tokens)
        yield from _column("token_ids", len(ids), lambda a, b: _array(ids[a:b]))
        yield from _column("offsets", len(ids), lambda a, b: _array(spans[a:b]))

    def _alternatives(self, part: ScoredPart, *, first: bool) -> Iterator[bytes]:
        if not self.detailed or part.top is None:
            return
        yield b',"top_logprobs":[' if first else b","
        name = self.model.token_string
        rows = [
            [
                {"token": name(i), "token_id": i, "logprob": p}
                for i, p in zip(ids, values, strict=True)
            ]
            for ids, values in zip(part.top.ids.tolist(), part.top.logprobs, strict=True)
        ]
        yield orjson.dumps(rows, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]

    def _sums(self, text: TextTokens, totals: Totals, logprobs: Floats) -> Iterator[bytes]:
        if self.detailed:
            if self.body.top_logprobs:
                yield b"]"
            yield from _column("logprobs", len(logprobs), lambda a, b: _array(logprobs[a:b]))
        self.totals += totals
        measures = {**measures_of(totals), "eos_scored": text.eos_scored}
        yield b"," + orjson.dumps(measures)[1:]

    @property
    def tokens(self) -> int:
        """Tokens read: the context once, and those that are scored."""
        return self.texts[0].context + sum(text.count for text in self.texts)

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
    }


def _array(values: np.ndarray) -> bytes:
    return orjson.dumps(np.ascontiguousarray(values), option=orjson.OPT_SERIALIZE_NUMPY)


def _column(name: str, length: int, part: Callable[[int, int], bytes]) -> Iterator[bytes]:
    """A list of `length` entries, in slices: `part(a, b)` is the JSON list of entries a to b."""
    yield f',"{name}":['.encode()
    for first in range(0, length, _SLICE):
        last = min(first + _SLICE, length)
        yield (b"," if first else b"") + part(first, last)[1:-1]
    yield b"]"
