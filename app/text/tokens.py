"""Tokens as text: their names, their bytes, and where in a text each of them is."""

from __future__ import annotations

import numpy as np

from app.text.stops import TextStream
from model.core.graph import Indices
from model.core.tokenizer import Encoded, Tokenizer


class TokenNames:
    """Names of a tokenizer's tokens; each is made once, since alternatives name thousands."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._strings: dict[int, str] = {}

    def string(self, token: int) -> str:
        """A token's text, with U+FFFD for bytes that are not UTF-8; a special symbol's name."""
        name = self._strings.get(token)
        if name is None:
            special = token in self._tokenizer.special_ids
            id_to_token = self._tokenizer.backend.id_to_token
            name = str(id_to_token(token)) if special else self._tokenizer.decode([token])
            self._strings[token] = name
        return name

    def raw(self, token: int, *, special: bool) -> bytes:
        """A token's bytes; the start and end symbols have their names if `special`, else none."""
        if special and token in (self._tokenizer.start_id, self._tokenizer.end_id):
            return self.string(token).encode()
        return self._tokenizer.token_bytes[token]


def read_tokens(tokenizer: Tokenizer, ids: Indices) -> tuple[str, Encoded]:
    """The text of tokens, int64 [n], and their offsets in it.

    Bytes that are not UTF-8 become U+FFFD, and a special symbol has no text.
    """
    small_ids = ids.astype(np.int32)
    try:
        text = tokenizer.decode_bytes(ids.tolist()).decode("utf-8")
    except UnicodeDecodeError:
        return _repair([tokenizer.token_bytes[i] for i in ids.tolist()], small_ids)
    return text, tokenizer.with_positions(small_ids, text)


def _repair(pieces: list[bytes], ids: np.ndarray) -> tuple[str, Encoded]:
    """As `read_tokens`, for the bytes of tokens that are not UTF-8 together."""
    stream, text = TextStream(), []
    offsets = np.empty((3, len(pieces)), np.int32)
    for n, raw in enumerate(pieces):
        last = n == len(pieces) - 1
        start = stream.offset_of(raw, last=last)
        text.append(stream.feed(raw, last=last))
        # an unfinished character counts as one that the token touches
        offsets[:, n] = start, stream.offset_of(b"", last=True), stream.position
    return "".join(text), Encoded(ids, *offsets)
