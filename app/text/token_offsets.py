"""Token ids to text, and where in it each token is."""

from __future__ import annotations

import numpy as np

from app.text.stops import TextStream
from model.core.graph import Indices
from model.core.tokenizer import Encoded, Tokenizer


def read_tokens(tokenizer: Tokenizer, ids: Indices) -> tuple[str, Encoded]:
    """The text of tokens, int64 [n], and their places in it.

    Bytes that are no UTF-8 become U+FFFD, and a special symbol has no text.
    """
    own = ids.astype(np.int32)
    try:
        text = tokenizer.decode_bytes(ids.tolist()).decode("utf-8")
    except UnicodeDecodeError:
        return _repaired([tokenizer.token_bytes[i] for i in ids.tolist()], own)
    return text, tokenizer.with_positions(own, text)


def _repaired(pieces: list[bytes], ids: np.ndarray) -> tuple[str, Encoded]:
    stream, text = TextStream(), []
    places = np.empty((3, len(pieces)), np.int32)
    for n, raw in enumerate(pieces):
        last = n == len(pieces) - 1
        start = stream.place_of(raw, last=last)
        text.append(stream.feed(raw, last=last))
        # what has begun and is not complete is one character more
        places[:, n] = start, stream.place_of(b"", last=True), stream.position
    return "".join(text), Encoded(ids, *places)
