"""Text to tokens and back; also without the /v1 prefix, where evaluation tools expect it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from fastapi import Request
from fastapi.responses import Response
from numpy.typing import NDArray

from app.api.http.body import read
from app.api.http.stream import sliced
from app.api.json_stream import CLOSE_OBJECT, array_in_slices, dumps, members, open_object
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
    return sliced(await by_size(len(encoded.ids), lambda: _tokens(model, body, encoded)))


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


def _tokens(model: LanguageModel, body: TokenizeRequest, encoded: Encoded) -> list[bytes]:
    ids, spans = encoded.ids, np.stack([encoded.starts, encoded.ends], 1)
    if body.add_special_tokens:
        ids = np.concatenate([np.array([model.tokenizer.start_id], np.int32), ids])
        spans = np.concatenate([np.zeros((1, 2), np.int32), spans])
    head = {"count": len(ids), "max_model_len": model.settings.max_request_tokens}
    parts = [open_object(head), *_array("tokens", ids)]
    if body.return_token_strs:
        parts += _array("token_strs", ids, model.token_string)
    else:
        parts.append(members({"token_strs": None}))
    if body.return_token_bytes:
        # one list for equal tokens: a million would make the garbage collector work
        parts += _array("token_bytes", ids, cache(lambda i: list(model.tokenizer.token_bytes[i])))
    if body.return_offsets:
        parts += _array("offsets", spans)
    return [*parts, CLOSE_OBJECT]


def _array(
    name: str, values: NDArray[np.int32], entry: Callable[[int], object] | None = None
) -> Iterator[bytes]:
    """A member with an entry for each value, a slice at a time, so that other threads may run."""

    def part(first: int, last: int) -> bytes:
        some = values[first:last]
        return dumps(some if entry is None else [entry(value) for value in some.tolist()])

    return array_in_slices(name, len(values), part)


def _text(model: LanguageModel, body: DetokenizeRequest) -> bytes:
    ids = model.reader.read_ids(body.tokens, "tokens")
    special = () if body.skip_special_tokens else model.tokenizer.special_ids
    names = {i: model.token_string(i).encode() for i in special}
    pieces = model.tokenizer.token_bytes
    raw = b"".join(names.get(i, pieces[i]) for i in ids.tolist())
    return dumps({"prompt": raw.decode("utf-8", "replace")})
