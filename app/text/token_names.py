"""What tokens are called in answers, and the bytes that they add to a text."""

from __future__ import annotations

from model.core.tokenizer import Tokenizer


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
