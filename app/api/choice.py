"""One choice of a completion: tokens to text and to the legacy logprobs lists."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.engine.sequence import Generated, Top
from app.lm import LanguageModel, Prompt, ScoredPart
from app.text.stops import TextStream
from app.wire.completions import CompletionRequest


@dataclass(frozen=True, slots=True)
class Delta:
    """Text that has become certain, the tokens it begins, and why it is the last, if so."""

    text: str
    logprobs: dict[str, list[Any]] | None
    finish: str | None


@dataclass(frozen=True, slots=True)
class _Entry:
    """A token in the logprobs lists; `offset` counts characters of the choice's text."""

    token: int
    logprob: np.float32 | None
    top: dict[str, np.float32] | None
    offset: int


class ChoiceWriter:
    """Collects a choice's events; gives text when it is certain, with its tokens beside it."""

    def __init__(self, model: LanguageModel, prompt: Prompt, body: CompletionRequest) -> None:
        self.model, self.prompt, self.body = model, prompt, body
        self.finished = False
        self._stream = TextStream(body.stop)
        self._scores: list[ScoredPart] = []
        self._entries: list[_Entry] = []
        self._echoed = not body.echo
        self._base = len(prompt.text) if body.echo else 0
        self._shown = 0

    def scored(self, part: ScoredPart) -> None:
        """Takes scores of the prompt's tokens, in order."""
        self._scores.append(part)

    def generated(self, event: Generated) -> Delta | None:
        """Takes a generated token; a delta if any text has become certain with it."""
        front = self._echo()
        raw = self.model.tokenizer.token_bytes[event.token]
        last = event.finish is not None
        offset = self._base + self._stream.place_of(raw, last=last)
        logprob = np.float32(event.logprob)
        top = self._ranked(event.top, event.token, logprob)
        self._entries.append(_Entry(event.token, logprob, top, offset))
        text = self._stream.feed(raw, last=last)
        self._shown += len(text)
        if self._stream.stopped is not None:
            return self._last(front + text, "stop", cut=True)
        if event.finish is not None:
            return self._last(front + text, event.finish, cut=False)
        if not front and not text:
            return None
        return Delta(front + text, self._listed(self._base + self._shown), None)

    def end(self) -> Delta:
        """The delta of a choice that generates nothing."""
        return self._last(self._echo(), "length", cut=False)

    def _last(self, text: str, finish: str, *, cut: bool) -> Delta:
        self.finished = True
        return Delta(text, self._listed(self._base + self._shown if cut else None), finish)

    def _echo(self) -> str:
        """The prompt, once, its tokens put in front of the lists."""
        if self._echoed:
            return ""
        self._echoed = True
        ids = self.prompt.ids[self.prompt.given :].tolist()
        offsets = self.prompt.starts.tolist()
        entries = [_Entry(ids[0], None, None, 0)] if ids else []
        place = 1
        for part in self._scores:
            for row, logprob in enumerate(part.logprobs):
                top = (
                    None
                    if part.top is None
                    else Top(part.top.ids[row : row + 1], part.top.logprobs[row : row + 1])
                )
                ranked = self._ranked(top, ids[place], logprob)
                entries.append(_Entry(ids[place], logprob, ranked, offsets[place]))
                place += 1
        if self.body.logprobs is not None:
            self._entries = entries
        return self.prompt.text

    def _ranked(
        self, top: Top | None, token: int, logprob: np.float32
    ) -> dict[str, np.float32] | None:
        """Alternatives by text, the token itself among them; of equal texts the likeliest."""
        if self.body.logprobs is None:
            return None
        ranked: dict[str, np.float32] = {}
        if top is not None:
            for other, value in zip(top.ids[0].tolist(), top.logprobs[0], strict=True):
                ranked.setdefault(self.model.token_string(other), value)
        ranked.setdefault(self.model.token_string(token), logprob)
        return ranked

    def _listed(self, before: int | None) -> dict[str, list[Any]] | None:
        """The lists of the tokens that begin before a character; of all that are left for None."""
        if self.body.logprobs is None:
            self._entries.clear()
            return None
        ready = [e for e in self._entries if before is None or e.offset < before]
        self._entries = self._entries[len(ready) :]
        return _columns(self.model, ready)


def _columns(model: LanguageModel, entries: Iterable[_Entry]) -> dict[str, list[Any]]:
    entries = list(entries)
    return {
        "tokens": [model.token_string(e.token) for e in entries],
        "token_logprobs": [e.logprob for e in entries],
        "top_logprobs": [e.top for e in entries],
        "text_offset": [e.offset for e in entries],
    }
