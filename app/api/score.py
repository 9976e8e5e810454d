"""POST /v1/score: log-probabilities of every token of texts."""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import Response

from app.api.http.body import SCORED_PER_BYTE, read, unless_gone
from app.api.http.deadlines import Deadline
from app.api.score_writer import ScoreWriter, alternatives_wanted, respond, tokenise
from app.wire.score import ScoreRequest


async def score(request: Request) -> Response:
    """The natural log-probability of every token of each text, and perplexities.

    The first token's probability is given the start symbol, or the context. Texts are
    independent of each other. See `docs/reference/api.md` for what is counted.
    """
    deadline = Deadline(request)
    body = await read(request, ScoreRequest, deadline, tokens_per_byte=SCORED_PER_BYTE)
    with unless_gone(request), deadline.limit(body.timeout_seconds):
        model = await request.app.state.catalog.loaded(body.model)
        model.settings.check_limit("top_logprobs", body.top_logprobs, "max_top_logprobs")
        texts = await tokenise(model, body.input, body)
        writer = ScoreWriter(model, texts, body)
        wanted, bulk = alternatives_wanted(body), body.priority > 0
        scores = model.score(texts, wanted, cache=body.cache, bulk=bulk)
        scores.submit()
        return await respond(writer, scores, deadline)
