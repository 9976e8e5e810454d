"""POST /v1/completions, in OpenAI's shape: one JSON document or server-sent events."""

from __future__ import annotations

from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING

from fastapi import Request
from fastapi.responses import Response

from app.api.completion_options import count_of
from app.api.completion_response import Completion
from app.api.http.body import read, unless_gone
from app.api.http.deadlines import Deadline
from app.api.http.stream import HoldingResponse, after, sliced
from app.errors import RequestError
from app.lm.prompts import PromptOptions
from app.lm.threads import by_size
from app.wire.completions import CompletionRequest

if TYPE_CHECKING:
    from app.lm.model import LanguageModel


async def completions(request: Request) -> Response:
    """Continues prompts, in the format of OpenAI's completions endpoint.

    A text prompt follows the start symbol, which is neither listed nor counted; token ids are
    taken as they are.
    """
    deadline = Deadline(request)
    body = await read(request, CompletionRequest, deadline)
    if body.stream_options is not None:
        ignored = len(body.stream_options.model_extra or ())
        request.app.state.metrics.ignored_fields.inc(ignored)
    with unless_gone(request), deadline.limit(body.timeout_seconds):
        model: LanguageModel = await request.app.state.catalog.loaded(body.model)
        _check_limits(model, body)
        return await _answer(model, body, deadline)


def _check_limits(model: LanguageModel, body: CompletionRequest) -> None:
    settings = model.settings
    settings.lower_default(body, "max_tokens", "max_completion_tokens")
    if body.min_tokens > body.max_tokens:  # which was compared with the default before
        raise RequestError("min_tokens: must not be above max_tokens", "min_tokens")
    choices = body.n * len(body.prompt)
    for name, value, limit in (
        ("max_tokens", body.max_tokens, "max_completion_tokens"),
        ("logprobs", count_of(model, body.logprobs), "max_top_logprobs"),
        ("prompt_logprobs", count_of(model, body.prompt_logprobs), "max_top_logprobs"),
        ("logprob_token_ids", len(body.logprob_token_ids or ()), "max_top_logprobs"),
        ("stop", len(body.stop), "max_stop_strings"),
        ("bad_words", len(body.bad_words), "max_stop_strings"),
        ("n", body.n, "max_request_texts"),
        ("n" if body.n > 1 else "prompt", choices, "max_request_texts"),
    ):
        settings.check_limit(name, value, limit)


async def _answer(model: LanguageModel, body: CompletionRequest, deadline: Deadline) -> Response:
    options = PromptOptions(
        body.add_special_tokens,
        body.truncate_prompt_tokens,
        body.truncation_side,
        special=not body.skip_special_tokens,
    )
    prompts = await model.prompts(body.prompt, options=options)
    size = sum(map(len, [body.logit_bias, body.stop_token_ids, *body.bad_words]))
    size += len(body.allowed_token_ids or ())
    completion = await by_size(size, lambda: Completion(model, body, prompts))
    async with AsyncExitStack() as stack:
        bulk = body.priority > 0
        model.admission.admit(completion.rows_due, bulk=bulk)
        caller = await stack.enter_async_context(model.engine.caller(bulk=bulk))
        if body.stream:
            events = completion.events(caller, deadline)
            await stack.enter_async_context(aclosing(events))
            first = await anext(events)  # until then an error is a status
            return HoldingResponse(after(first, events), "text/event-stream", stack.pop_all())
        parts = await completion.document(caller)
    return sliced(parts)
