"""POST /v1/score: log-probabilities of every token of texts."""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import Response

from app.api.http.body import read, unless_gone
from app.api.score_writer import ScoreWriter, alternatives_wanted, respond
from app.lm.texts import TextGroup
from app.wire.score import ScoreRequest


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
    with unless_gone(request):
        (texts,) = await model.tokenise(
            [TextGroup(body.input, body.context)],
            add_eos=body.add_eos,
            start=body.add_special_tokens,
        )
        writer = ScoreWriter(model, texts, body)
        scores = model.score(texts, alternatives_wanted(body), cache=body.cache)
        scores.submit()
        return await respond(writer, scores)
