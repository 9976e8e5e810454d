"""Prompts of completions, as tokens. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from app.errors import RequestError
from app.lm.texts import TextOrIds, TextReader, TokenLimit, entry_name
from app.text.stops import TextStream
from app.text.tokens import TokenNames
from model.core.graph import Indices
from model.core.tokenizer import Encoded


@dataclass(frozen=True, slots=True)
class Prompt:
    """The tokens that a completion continues.

    ids: int64 [n], the start symbol first if the prompt was text. given: leading tokens that the
    caller did not send: the start symbol, or none. starts: int64 [n - given], the character of
    `text` at which each token that the caller sent begins.
    """

    text: str
    ids: Indices
    given: int
    starts: Indices


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """How prompts are read. Token ids are taken as they are, except for `keep`.

    start: None puts the start symbol before texts; True does so as if the caller had sent it; False
    leaves it out. keep: the most tokens that are kept of each prompt; the others are dropped from
    `side`. special: special symbols show in the text.
    """

    start: bool | None = None
    keep: int | None = None
    side: Literal["left", "right"] = "left"
    special: bool = False

    def truncate(self, ids: Indices, count: int | None) -> Indices:
        """The last or the first `count` ids, all of them for None."""
        if count is None or len(ids) <= count:
            return ids
        return ids[len(ids) - count :] if self.side == "left" else ids[:count]


AS_SENT = PromptOptions()


class PromptReader:
    """Reads the prompts of requests. Raises TooLargeError, RequestError."""

    def __init__(self, reader: TextReader, names: TokenNames) -> None:
        self._reader, self._names = reader, names
        self._tokenizer = reader.tokenizer

    def read(
        self, prompts: Collection[TextOrIds], field: str, options: PromptOptions
    ) -> Iterator[Prompt]:
        """Prompts as tokens. field: their name in error messages."""
        limit = TokenLimit(self._reader.settings)
        for index, prompt in enumerate(prompts):
            name = entry_name(field, index, len(prompts))
            if isinstance(prompt, str):
                encoded = self._tokenizer.encode(prompt, limit.left)
                limit.check(len(encoded.ids), field)
                read = self._read_text(prompt, encoded, name, options)
            else:
                limit.check(len(prompt), field)
                read = self._read_ids(prompt, name, options)
            limit.take(len(read.ids) - read.given, field)
            yield read

    def _read_text(self, text: str, encoded: Encoded, name: str, options: PromptOptions) -> Prompt:
        keep = options.keep
        if keep is not None and options.start is True:
            keep -= 1  # the start symbol is one of the tokens
        ids = options.truncate(encoded.ids.astype(np.int64), keep)
        starts = encoded.starts.astype(np.int64)
        if len(ids) < len(encoded.ids):
            text, starts = self._decode(ids, special=options.special)
        if options.start is False:
            if not len(ids):
                message = "an empty prompt needs its start symbol; leave out add_special_tokens"
                raise RequestError(f"{name}: {message}", name)
            return Prompt(text, ids, 0, starts)
        start_id = self._tokenizer.start_id
        ids = np.concatenate([[start_id], ids]).astype(np.int64)
        if options.start is None:
            return Prompt(text, ids, 1, starts)
        symbol = self._names.raw(start_id, special=options.special).decode()
        starts = np.concatenate([[0], starts + len(symbol)]).astype(np.int64)
        return Prompt(symbol + text, ids, 0, starts)

    def _read_ids(self, tokens: list[int], name: str, options: PromptOptions) -> Prompt:
        ids = options.truncate(self._reader.read_ids(tokens, name), options.keep)
        text, starts = self._decode(ids, special=options.special)
        return Prompt(text, ids, 0, starts)

    def _decode(self, ids: Indices, *, special: bool) -> tuple[str, Indices]:
        """The text of tokens, and the character at which each of them begins, int64 [n]."""
        stream, pieces, starts = TextStream(), [], []
        for token in ids.tolist():
            raw = self._names.raw(token, special=special)
            starts.append(stream.offset_of(raw))
            pieces.append(stream.feed(raw))
        return "".join([*pieces, stream.feed(b"", last=True)]), np.array(starts, np.int64)
