"""POST /v1/next: the most probable next tokens, or candidates ranked."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from fastapi import Request
from fastapi.responses import Response

from app.api.http.body import read, unless_gone
from app.api.http.deadlines import Deadline
from app.lm.threads import by_size
from app.wire.fields import Usage
from app.wire.next import NextRequest, NextResponse, NextToken

if TYPE_CHECKING:
    from app.lm.model import Candidate, LanguageModel


async def next_tokens(request: Request) -> Response:
    """The most probable tokens after a text, or candidates ranked.

    A candidate may have several tokens; its log-probability is their sum.
    """
    deadline = Deadline(request)
    body = await read(request, NextRequest, deadline)
    catalog = request.app.state.catalog
    settings = catalog.settings
    settings.lower_default(body, "top_k", "max_top_k")
    settings.check_limit("top_k", body.top_k, "max_top_k")
    with unless_gone(request), deadline.limit(body.timeout_seconds):
        model = await catalog.loaded(body.model)
        return await _answer(model, body)


async def _answer(model: LanguageModel, body: NextRequest) -> Response:
    cache, bulk = body.cache, body.priority > 0
    if body.candidates is None:
        found = await model.next_tokens(body.input, body.top_k, cache=cache, bulk=bulk)
    else:
        found = await model.rank(body.input, body.candidates, cache=cache, bulk=bulk)
    candidates, tokens = found
    size = sum(len(candidate.token_ids) for candidate in candidates)
    content = await by_size(size, lambda: _json(model, candidates, tokens))
    return Response(content, media_type="application/json")


def _json(model: LanguageModel, candidates: list[Candidate], tokens: int) -> str:
    data = [
        NextToken(**asdict(candidate), probability=math.exp(candidate.logprob))
        for candidate in candidates
    ]
    answer = NextResponse(
        model=model.name,
        data=data,
        usage=Usage(prompt_tokens=tokens, total_tokens=tokens),
        system_fingerprint=model.fingerprint,
    )
    return answer.model_dump_json()
