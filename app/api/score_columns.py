"""The parallel lists of a text's scores as JSON, in slices."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from app.api import json_stream
from app.text.words import Words
from model.core.graph import Floats, Indices

if TYPE_CHECKING:
    from app.engine.sequence import Scored
    from app.lm.model import LanguageModel
    from app.lm.texts import TextTokens


def tokens(model: LanguageModel, text: TextTokens) -> Iterator[bytes]:
    """`tokens`, `token_ids` and `offsets`."""
    encoded, ids = text.encoded, text.text_ids
    count = len(encoded.ids)
    spans = np.empty((len(ids), 2), np.int32)
    spans[:count, 0], spans[:count, 1] = encoded.starts, encoded.ends
    spans[count:] = len(text.text)  # of the end symbol, if it is scored

    def names(first: int, last: int) -> bytes:
        begin = int(encoded.cuts[first - 1]) if first else 0
        cuts = [begin, *encoded.cuts[first:last].tolist()]
        pieces = [text.text[a:b] for a, b in itertools.pairwise(cuts)]
        if text.eos_scored and last == len(ids):
            pieces.append(model.token_string(int(ids[-1])))
        return json_stream.dumps(pieces)

    yield from json_stream.array_in_slices("tokens", len(ids), names)
    yield from _array("token_ids", ids)
    yield from _array("offsets", spans)


def alternatives(
    model: LanguageModel, text: TextTokens, part: Scored, count: int, *, first: bool
) -> bytes:
    """The next entries of `top_logprobs`, whose list is not closed."""
    assert part.top is not None
    name = model.token_string
    rows: list[object] = [
        [{"token": name(i), "token_id": i, "logprob": p} for i, p in zip(ids, values, strict=True)]
        for ids, values in zip(
            part.top.ids[:, :count].tolist(), part.top.logprobs[:, :count], strict=True
        )
    ]
    if not first:
        return json_stream.SEPARATOR + json_stream.elements(rows)
    if text.first_is_unscored:
        rows.insert(0, None)
    return json_stream.open_array("top_logprobs") + json_stream.elements(rows)


def logprobs(text: TextTokens, values: Floats) -> Iterator[bytes]:
    """`logprobs`. values: float32 [N]; a token without one has null."""
    yield from _array("logprobs", _with_unscored(text, values))


def ranks(text: TextTokens, values: Indices) -> Iterator[bytes]:
    """`ranks`. values: int64 [N]; a token without one has null."""
    absent = int(text.first_is_unscored)

    def entries(first: int, last: int) -> bytes:
        known = values[max(first - absent, 0) : last - absent].tolist()
        return json_stream.dumps(known if first else [None] * absent + known)

    yield from json_stream.array_in_slices("ranks", absent + len(values), entries)


def words(
    model: LanguageModel, text: TextTokens, words: Words, logprobs: Floats
) -> Iterator[bytes]:
    """`words`, the end symbol last if it is scored. logprobs: float32 [N]."""
    values = _with_unscored(text, logprobs)
    spans = np.stack([words.starts, words.ends], 1)
    surprisals = words.surprisals(values)
    count = len(spans)

    def entries(first: int, last: int) -> bytes:
        entries = [
            _word(text.text[a:b], (a, b), surprisal, (c, d))
            for (a, b), surprisal, (c, d) in zip(
                spans[first:last].tolist(),
                surprisals[first:last].tolist(),
                itertools.pairwise(words.tokens[first : last + 1].tolist()),
                strict=False,
            )
        ]
        if text.eos_scored and last == count + 1:
            end, index = len(text.text), len(values) - 1
            name = model.token_string(int(text.text_ids[-1]))
            entries.append(_word(name, (end, end), -float(values[-1]), (index, index + 1)))
        return json_stream.dumps(entries)

    yield from json_stream.array_in_slices("words", count + text.eos_scored, entries)


def _word(
    word: str, offsets: tuple[int, int], surprisal: float, tokens: tuple[int, int]
) -> dict[str, object]:
    return {"word": word, "offsets": offsets, "surprisal": surprisal, "tokens": tokens}


def _with_unscored(text: TextTokens, logprobs: Floats) -> Floats:
    """Values of all tokens, NaN, which JSON has as null, for a first token that is not scored."""
    if not text.first_is_unscored:
        return logprobs
    return np.concatenate([np.full(1, np.nan, np.float32), logprobs])


def _array(name: str, values: np.ndarray) -> Iterator[bytes]:
    def entries(first: int, last: int) -> bytes:
        return json_stream.dumps(np.ascontiguousarray(values[first:last]))

    return json_stream.array_in_slices(name, len(values), entries)
