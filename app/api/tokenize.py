"""Text to tokens and back; also without the /v1 prefix, where evaluation tools expect it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from fastapi import Request
from fastapi.responses import Response

from app.api.http.body import read
from app.api.json_stream import dumps
from app.lm.threads import by_size
from app.wire.tokenize import DetokenizeRequest, TokenizeRequest, TokenizerInfo
from model.core.tokenizer import END, START, UNKNOWN, Encoded

if TYPE_CHECKING:
    from app.lm.model import LanguageModel


async def tokenize(request: Request) -> Response:
    """The tokens that a text is scored as.

    A text that is the name of a special symbol is that symbol; within a longer text the name is
    ordinary characters, as in scoring.
    """
    body = await read(request, TokenizeRequest, tokens_per_byte=None)
    model: LanguageModel = await request.app.state.catalog.loaded(body.model)
    encoded = _special(model, body.prompt) or await model.encode(body.prompt, "prompt")
    content = await by_size(len(encoded.ids), lambda: _tokens(model, body, encoded))
    return Response(content, media_type="application/json")


async def detokenize(request: Request) -> Response:
    """The text of tokens."""
    body = await read(request, DetokenizeRequest, tokens_per_byte=None)
    model: LanguageModel = await request.app.state.catalog.loaded(body.model)
    content = await by_size(len(body.tokens), lambda: _text(model, body))
    return Response(content, media_type="application/json")


async def tokenizer_info(request: Request, model: str | None = None) -> TokenizerInfo:
    """The special symbols of a model's tokenizer."""
    served: LanguageModel = await request.app.state.catalog.loaded(model)
    tokenizer = served.tokenizer
    return TokenizerInfo(
        bos_token=START,
        eos_token=END,
        unk_token=None if tokenizer.unknown_id is None else UNKNOWN,
        bos_token_id=tokenizer.start_id,
        eos_token_id=tokenizer.end_id,
        unk_token_id=tokenizer.unknown_id,
        vocab_size=tokenizer.size,
        model_max_length=served.settings.max_request_tokens,
    )


def _special(model: LanguageModel, text: str) -> Encoded | None:
    """A special symbol if the text is its name, so that tools learn the symbols' ids."""
    names = {model.token_string(i): i for i in model.tokenizer.special_ids}
    if text not in names:
        return None
    end = np.array([len(text)], np.int32)
    return Encoded(np.array([names[text]], np.int32), np.zeros(1, np.int32), end, end)


def _tokens(model: LanguageModel, body: TokenizeRequest, encoded: Encoded) -> bytes:
    ids, spans = encoded.ids, np.stack([encoded.starts, encoded.ends], 1)
    if body.add_special_tokens:
        ids = np.concatenate([np.array([model.tokenizer.start_id], np.int32), ids])
        spans = np.concatenate([np.zeros((1, 2), np.int32), spans])
    answer = {
        "count": len(ids),
        "max_model_len": model.settings.max_request_tokens,
        "tokens": ids,
        "token_strs": None,
    }
    if body.return_token_strs:
        answer["token_strs"] = [model.token_string(i) for i in ids.tolist()]
    if body.return_token_bytes:
        answer["token_bytes"] = [list(model.tokenizer.token_bytes[i]) for i in ids.tolist()]
    if body.return_offsets:
        answer["offsets"] = spans
    return dumps(answer)


def _text(model: LanguageModel, body: DetokenizeRequest) -> bytes:
    ids = model.reader.read_ids(body.tokens, "tokens")
    special = () if body.skip_special_tokens else model.tokenizer.special_ids
    names = {i: model.token_string(i).encode() for i in special}
    pieces = model.tokenizer.token_bytes
    raw = b"".join(names.get(i, pieces[i]) for i in ids.tolist())
    return dumps({"prompt": raw.decode("utf-8", "replace")})
