"""POST /v1/next: what may come after a text."""

from __future__ import annotations

import math

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.api import limits
from app.api.http.body import documented, read, unless_gone
from app.lm.model import Candidate, LanguageModel, by_size
from app.wire.fields import Usage
from app.wire.next import NextRequest, NextResponse, NextToken

router = APIRouter()


@router.post(
    "/v1/next",
    summary="The next token",
    response_model=NextResponse,
    openapi_extra=documented(NextRequest),
)
async def following(request: Request) -> Response:
    """The most probable tokens after a text, or given candidates ranked.

    A candidate may have several tokens; its log-probability is their sum.
    """
    catalog = request.app.state.catalog
    settings = catalog.settings
    catalog.check()
    body = await read(request, NextRequest, settings)
    limits.lower_default(settings, body, "top_k", "max_top_k")
    limits.check(settings, "top_k", body.top_k, "max_top_k")
    return await unless_gone(request, _answer(await catalog.loaded(body.model), body))


async def _answer(model: LanguageModel, body: NextRequest) -> Response:
    if body.candidates is None:
        found, tokens = await model.next_tokens(body.input, body.top_k, cache=body.cache)
    else:
        found, tokens = await model.rank(body.input, body.candidates, cache=body.cache)
    size = sum(len(candidate.token_ids) for candidate in found)
    content = await by_size(size, lambda: _written(model, found, tokens))
    return Response(content, media_type="application/json")


def _written(model: LanguageModel, found: list[Candidate], tokens: int) -> str:
    data = [
        NextToken(
            token=candidate.token,
            token_ids=candidate.token_ids,
            logprob=candidate.logprob,
            probability=math.exp(candidate.logprob),
        )
        for candidate in found
    ]
    answer = NextResponse(
        model=model.name,
        data=data,
        usage=Usage(prompt_tokens=tokens, total_tokens=tokens),
        system_fingerprint=model.fingerprint,
    )
    return answer.model_dump_json()
