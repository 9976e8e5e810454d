"""The parallel lists of a text's scores as JSON, in slices."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import orjson

from app.lm.model import LanguageModel, ScoredPart, TextTokens
from app.text.words import Words
from model.core.graph import Floats, Indices

_SLICE = 4096


def tokens(model: LanguageModel, text: TextTokens) -> Iterator[bytes]:
    """`tokens`, `token_ids` and `offsets`."""
    encoded, ids = text.encoded, text.own
    own = len(encoded.ids)
    spans = np.empty((len(ids), 2), np.int32)
    spans[:own, 0], spans[:own, 1] = encoded.starts, encoded.ends
    spans[own:] = len(text.text)  # the end symbol's, if it is scored

    def names(first: int, last: int) -> bytes:
        begin = int(encoded.cuts[first - 1]) if first else 0
        places = [begin, *encoded.cuts[first:last].tolist()]
        pieces = [text.text[a:b] for a, b in itertools.pairwise(places)]
        if text.eos_scored and last == len(ids):
            pieces.append(model.token_string(int(ids[-1])))
        return orjson.dumps(pieces)

    yield from _column("tokens", len(ids), names)
    yield from _column("token_ids", len(ids), lambda a, b: _array(ids[a:b]))
    yield from _column("offsets", len(ids), lambda a, b: _array(spans[a:b]))


def alternatives(
    model: LanguageModel, text: TextTokens, part: ScoredPart, count: int, *, first: bool
) -> bytes:
    """The next entries of `top_logprobs`, whose list is not closed."""
    assert part.top is not None
    name = model.token_string
    rows = [
        [{"token": name(i), "token_id": i, "logprob": p} for i, p in zip(ids, values, strict=True)]
        for ids, values in zip(
            part.top.ids[:, :count].tolist(), part.top.logprobs[:, :count], strict=True
        )
    ]
    before = b',"top_logprobs":[' + b"null," * text.unscored if first else b","
    return before + orjson.dumps(rows, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]


def logprobs(text: TextTokens, values: Floats) -> Iterator[bytes]:
    """`logprobs`. values: float32 [N]; a token without one has null."""
    every = _every(text, values)
    yield from _column("logprobs", len(every), lambda a, b: _array(every[a:b]))


def ranks(text: TextTokens, values: Indices) -> Iterator[bytes]:
    """`ranks`. values: int64 [N]; a token without one has null."""
    absent = [None] * text.unscored

    def entries(first: int, last: int) -> bytes:
        listed = values[max(first - text.unscored, 0) : last - text.unscored].tolist()
        return orjson.dumps(listed if first else absent + listed)

    yield from _column("ranks", text.unscored + len(values), entries)


def words(model: LanguageModel, text: TextTokens, found: Words, values: Floats) -> Iterator[bytes]:
    """`words`, the end symbol last if it is scored. values: float32 [N]."""
    every = _every(text, values)
    spans = np.stack([found.starts, found.ends], 1)
    surprisals = found.surprisals(every)
    count = len(spans)

    def entries(first: int, last: int) -> bytes:
        listed = [
            _word(text.text[a:b], (a, b), surprisal, (c, d))
            for (a, b), surprisal, (c, d) in zip(
                spans[first:last].tolist(),
                surprisals[first:last].tolist(),
                itertools.pairwise(found.tokens[first : last + 1].tolist()),
                strict=False,
            )
        ]
        if text.eos_scored and last == count + 1:
            end, place = len(text.text), len(every) - 1
            name = model.token_string(int(text.own[-1]))
            listed.append(_word(name, (end, end), -float(every[-1]), (place, place + 1)))
        return orjson.dumps(listed)

    yield from _column("words", count + text.eos_scored, entries)


def _word(
    word: str, offsets: tuple[int, int], surprisal: float, places: tuple[int, int]
) -> dict[str, object]:
    return {"word": word, "offsets": offsets, "surprisal": surprisal, "tokens": places}


def _every(text: TextTokens, values: Floats) -> Floats:
    """Values with NaN, which JSON has as null, for the token that has none."""
    if not text.unscored:
        return values
    return np.concatenate([np.full(1, np.nan, np.float32), values])


def _array(values: np.ndarray) -> bytes:
    return orjson.dumps(np.ascontiguousarray(values), option=orjson.OPT_SERIALIZE_NUMPY)


def _column(name: str, length: int, part: Callable[[int, int], bytes]) -> Iterator[bytes]:
    """A list of `length` entries, in slices: `part(a, b)` is the JSON list of entries a to b."""
    if length <= _SLICE:
        yield b',"%b":%b' % (name.encode(), part(0, length) if length else b"[]")
        return
    yield f',"{name}":['.encode()
    for first in range(0, length, _SLICE):
        last = min(first + _SLICE, length)
        yield (b"," if first else b"") + part(first, last)[1:-1]
    yield b"]"
