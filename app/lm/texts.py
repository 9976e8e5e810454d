"""Texts to score, as tokens after the tokens that they are conditioned on. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from app.errors import RequestError, TooLargeError
from app.lm.threads import INLINE_CHARACTERS
from app.settings import Settings
from app.text.tokens import read_tokens
from model.core.graph import Indices
from model.core.text_cache import BLOCK
from model.core.tokenizer import Encoded, Tokenizer

_TEXTS_AT_ONCE = 64
"""Texts in one call of the tokenizer, which divides them among the cores. While it encodes it takes
about 100 bytes a character: 26 MB for as many texts of INLINE_CHARACTERS."""
_IDS_AT_ONCE = 1 << 16
"""Ids that become an array before other threads may run."""
_COST_OF_TEXT = 16
"""Characters that take as long to tokenise as it takes to begin with another text."""

TextOrIds = str | list[int]
"""A text, or its token ids."""


class TextGroup(NamedTuple):
    """Texts of a request with one context, and the names of both fields in error messages."""

    texts: Sequence[TextOrIds]
    context: TextOrIds = ""
    field: str = "input"
    context_field: str = "context"

    @property
    def size(self) -> int:
        """Characters and ids in it; each text counts as some more, since it costs by itself."""
        return len(self.context) + sum(map(len, self.texts)) + _COST_OF_TEXT * len(self.texts)

    def name(self, index: int) -> str:
        """The name of one of the texts in error messages."""
        return entry_name(self.field, index, len(self.texts))


class TextTokens(NamedTuple):
    """A text to score: its tokens after the tokens that it is conditioned on.

    ids: int64 [prefix_length + N], the end symbol last if it is scored. prefix_length: the tokens
    that are not scored: the start symbol and the context, as far as the text's first row sees them,
    and the text's first token if nothing is before it (`first_is_unscored`). context_length: all
    tokens of the context. prefix: int64, the start symbol and all of the context.
    """

    text: str
    encoded: Encoded
    ids: Indices
    prefix_length: int
    context_length: int
    eos_scored: bool
    first_is_unscored: bool
    prefix: Indices

    @property
    def scored(self) -> int:
        """N, the number of tokens that are scored."""
        return len(self.ids) - self.prefix_length

    @property
    def tokens_read(self) -> int:
        """The tokens of the text itself, and the end symbol if it is scored."""
        return self.scored + self.first_is_unscored

    @property
    def size(self) -> int:
        """Characters or tokens, whichever are more: a special symbol has no characters."""
        return max(len(self.text), len(self.ids))

    @property
    def text_ids(self) -> Indices:
        """The text's tokens, and the end symbol if it is scored, int64 [tokens_read]."""
        return self.ids[self.prefix_length - self.first_is_unscored :]

    @property
    def cache_text(self) -> Indices:
        """The tokens that a cache reads: the counted prefix, then the text, int64 [n].

        Blocks that change no count are left out.
        """
        uncounted = max(0, len(self.prefix) // BLOCK - 1) * BLOCK
        return np.concatenate([self.prefix[uncounted:], self.text_ids])


def tokens_read(texts: list[TextTokens]) -> int:
    """The tokens of texts and, once, of the context that they share."""
    return texts[0].context_length + sum(text.tokens_read for text in texts)


def entry_name(field: str, index: int, count: int) -> str:
    """The name of one of a field's `count` entries in error messages."""
    return f"{field}.{index}" if count > 1 else field


class TokenLimit:
    """Counts the tokens of a request against the limit."""

    def __init__(self, settings: Settings) -> None:
        self._limit = self.left = settings.max_request_tokens

    def check(self, count: int, field: str) -> None:
        """Raises TooLargeError for more tokens than are left."""
        if count > self.left:
            message = f"{field}: over the limit max_request_tokens, {self._limit}"
            raise TooLargeError(message, field)

    def take(self, count: int, field: str) -> None:
        """Counts tokens of a field. Raises TooLargeError."""
        self.check(count, field)
        self.left -= count


class TextReader:
    """Reads the texts of requests. Raises TooLargeError, RequestError.

    halo: R - 1, the tokens before a row's own that the row depends on.
    """

    def __init__(self, tokenizer: Tokenizer, settings: Settings, halo: int) -> None:
        self.tokenizer, self.settings = tokenizer, settings
        self._halo = halo
        self._start = np.array([tokenizer.start_id], np.int64)

    def read(
        self, groups: Iterable[TextGroup], *, add_eos: bool, start: bool = True
    ) -> list[list[TextTokens]]:
        """The tokens of each group's texts. Token ids are taken as they are.

        start: whether the start symbol is before the context and each text.
        """
        for group in groups:
            if not (add_eos or all(group.texts)):
                raise _empty(group)
        limit = TokenLimit(self.settings)
        return [self._read(group, limit, add_eos, start) for group in groups]

    def encode(self, text: str, field: str) -> Encoded:
        """A text's tokens, without any symbol."""
        limit = TokenLimit(self.settings)
        encoded = self.tokenizer.encode(text, limit.left)
        limit.check(len(encoded.ids), field)
        return encoded

    def read_ids(self, tokens: list[int], field: str) -> Indices:
        """Token ids of a request as int64 [n], all of them in the vocabulary."""
        TokenLimit(self.settings).check(len(tokens), field)
        last = self.tokenizer.size - 1
        ids = np.empty(len(tokens), np.int64)
        for first in range(0, len(tokens), _IDS_AT_ONCE):
            part = tokens[first : first + _IDS_AT_ONCE]
            if not 0 <= min(part) <= max(part) <= last:
                place, token = next((i, t) for i, t in enumerate(part, first) if not 0 <= t <= last)
                message = f"token id {token} at place {place} is not in the vocabulary, 0 to {last}"
                raise RequestError(f"{field}: {message}", field)
            ids[first : first + len(part)] = part
        return ids

    def _read(
        self, group: TextGroup, limit: TokenLimit, add_eos: bool, start: bool
    ) -> list[TextTokens]:
        prefix, context_length = self._start[:start], 0
        if group.context:
            context = self._read_context(group, limit)
            prefix, context_length = np.concatenate([prefix, context]), len(context)
        seen = prefix[-self._halo - 1 :]
        first_is_unscored = not len(prefix)
        prefix_length = len(seen) + first_is_unscored
        conditions = (prefix_length, context_length, add_eos, first_is_unscored, prefix)
        read: list[TextTokens] = []
        for first in range(0, len(group.texts), _TEXTS_AT_ONCE):
            for text, encoded in self._encode(group, first, limit):
                end = len(seen) + len(encoded.ids)
                limit.take(len(encoded.ids) + add_eos, group.field)
                ids = np.empty(end + add_eos, np.int64)
                ids[: len(seen)], ids[len(seen) : end] = seen, encoded.ids
                if add_eos:
                    ids[end] = self.tokenizer.end_id
                if len(ids) <= prefix_length:
                    raise _nothing_to_score(group.name(len(read)), first_is_unscored)
                read.append(TextTokens(text, encoded, ids, *conditions))
        return read

    def _read_context(self, group: TextGroup, limit: TokenLimit) -> Indices:
        if isinstance(group.context, str):
            ids = self.tokenizer.encode(group.context, limit.left).ids.astype(np.int64)
        else:
            ids = self.read_ids(group.context, group.context_field)
        limit.take(len(ids), group.context_field)
        return ids

    def _encode(
        self, group: TextGroup, first: int, limit: TokenLimit
    ) -> Iterable[tuple[str, Encoded]]:
        """Texts from the first on, with their tokens. None is read beyond what the limit leaves."""
        texts = group.texts[first : first + _TEXTS_AT_ONCE]
        strings = [text for text in texts if isinstance(text, str)]
        short = sum(map(len, strings)) <= _TEXTS_AT_ONCE * INLINE_CHARACTERS
        if short and len(strings) == len(texts):
            return zip(strings, self.tokenizer.encode_many(strings), strict=True)
        return (
            (text, self.tokenizer.encode(text, limit.left))
            if isinstance(text, str)
            else read_tokens(self.tokenizer, self.read_ids(text, group.name(index)))
            for index, text in enumerate(texts, first)
        )


def _empty(group: TextGroup) -> RequestError:
    name = group.name(next(index for index, text in enumerate(group.texts) if not text))
    message = "an empty text has nothing to score; set add_eos to score its end symbol"
    return RequestError(f"{name}: {message}", name)


def _nothing_to_score(name: str, first_is_unscored: bool) -> RequestError:
    message = f"{name}: there is no token to score"
    if first_is_unscored:
        message += "; the first is scored only after the start symbol or a context"
    return RequestError(message, name)
