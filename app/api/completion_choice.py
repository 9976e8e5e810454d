"""One choice of a completion: tokens to text and to the legacy logprobs lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import orjson

from app.api.completion_logprobs import Columns, Entry
from app.api.completion_options import count_of
from app.engine.sequence import Generated, Top
from app.lm.model import LanguageModel, Prompt, ScoredPart
from app.text.stops import TextStream
from app.wire.completions import CompletionRequest


@dataclass(frozen=True, slots=True)
class Delta:
    """Text that has become certain, the tokens it begins, and why it is the last, if so.

    first: whether it is the first of the choice, in front of which an echoed prompt belongs.
    """

    text: str
    first: bool
    columns: Columns
    token_ids: list[int]
    finish: str | None
    stop_reason: str | int | None


class Lister:
    """What a request calls tokens, and which it lists beside them."""

    def __init__(self, model: LanguageModel, body: CompletionRequest) -> None:
        self.model = model
        self.wanted = body.logprobs is not None or body.logprob_token_ids is not None
        self._by_id = body.return_tokens_as_token_ids

    def name(self, token: int) -> str:
        """A token's string."""
        return f"token_id:{token}" if self._by_id else self.model.token_string(token)

    def entry(
        self, token: int, logprob: np.float32 | None, top: Top | None, row: int, offset: int
    ) -> Entry:
        """A token with its alternatives, those of one row of `top`, itself among them.

        Of equal strings the most probable counts.
        """
        ranked: dict[str, np.float32] | None = None
        if logprob is not None:
            ranked = {}
            if top is not None:
                for other, value in zip(top.ids[row].tolist(), top.logprobs[row], strict=True):
                    name = self.name(other)
                    if name not in ranked or ranked[name] < value:
                        ranked[name] = value
            ranked.setdefault(self.name(token), logprob)
        return Entry(token, self.name(token), logprob, ranked, offset)


class PromptWriter:
    """What is listed of a prompt's tokens; all its choices share it."""

    def __init__(self, lister: Lister, prompt: Prompt, body: CompletionRequest) -> None:
        self.prompt = prompt
        self.ids: list[int] = prompt.ids[prompt.given :].tolist()
        self.columns = Columns()
        self.logprobs = bytearray(b"null" if self.ids else b"")
        """The entries of `prompt_logprobs`."""
        self._lister = lister
        self._echoed = body.echo and lister.wanted
        self._count = count_of(lister.model, body.logprobs)
        self._wanted = body.prompt_logprobs
        self._place = 1
        if self._echoed and self.ids:
            self.columns.add([lister.entry(self.ids[0], None, None, 0, 0)])

    def scored(self, part: ScoredPart) -> None:
        """Takes scores of the prompt's tokens, in order; the first token has none."""
        ids = self.ids[self._place : self._place + len(part.logprobs)]
        if self._echoed:
            top = part.top
            if top is not None and self._wanted is not None:  # which may have asked for more
                top = Top(top.ids[:, : self._count], top.logprobs[:, : self._count])
            starts = self.prompt.starts[self._place : self._place + len(ids)].tolist()
            rows = zip(ids, part.logprobs, starts, strict=True)
            self.columns.add(
                [
                    self._lister.entry(token, logprob, top, row, start)
                    for row, (token, logprob, start) in enumerate(rows)
                ]
            )
        if self._wanted is not None:
            places = [self._ranked(part, row, token) for row, token in enumerate(ids)]
            self.logprobs += b"," + orjson.dumps(places, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
        self._place += len(ids)

    def _ranked(self, part: ScoredPart, row: int, token: int) -> dict[str, dict[str, object]]:
        """A place's own token, then the most probable ones, by id."""
        assert part.top is not None
        assert part.ranks is not None
        found = {token: (part.logprobs[row], int(part.ranks[row]))}
        count = count_of(self._lister.model, self._wanted)
        best = zip(part.top.ids[row, :count].tolist(), part.top.logprobs[row], strict=False)
        for rank, (other, value) in enumerate(best, 1):
            found[other] = (value, rank)
        name = self._lister.model.token_string
        return {
            str(other): {"logprob": value, "rank": rank, "decoded_token": name(other)}
            for other, (value, rank) in found.items()
        }


class ChoiceWriter:
    """Collects a choice's tokens; gives text when it is certain, with its tokens beside it."""

    def __init__(self, lister: Lister, prompt: Prompt, body: CompletionRequest) -> None:
        self._lister, self._model, self._body = lister, lister.model, body
        self.finished = False
        self._stream = TextStream(body.stop, keep_stop=body.include_stop_str_in_output)
        self._listing = lister.wanted or body.return_token_ids
        self._entries: list[Entry] = []
        self._base = len(prompt.text) if body.echo else 0
        self._front = "" if not body.echo else prompt.text
        self._first = True
        self._shown = 0
        self._count = 0

    @property
    def joins(self) -> bool:
        """Whether nothing is listed, looked for or sent token by token."""
        return not (self._listing or self._body.stop or self._body.stream)

    def generated(self, events: Sequence[Generated]) -> Delta | None:
        """Takes a generated token, or several if it `joins` them.

        A delta if any text has become certain with them.
        """
        self._count += len(events)
        event = events[-1]
        last = event.finish is not None
        raw = b"".join(map(self._raw, events))
        if self._listing:
            offset = self._base + self._stream.place_of(raw, last=last)
            logprob = np.float32(event.logprob)
            entry = self._lister.entry(event.token, logprob, event.top, 0, offset)
            self._entries.append(entry)
        text = self._stream.feed(raw, last=last, may_stop=self._count > self._body.min_tokens)
        self._shown += len(text)
        if self._stream.stopped is not None:
            return self._last(text, "stop", self._stream.stopped, cut=True)
        if event.finish is not None:
            reason = event.token if self._stops(event) else None
            return self._last(text, event.finish, reason, cut=False)
        if not text and not (self._first and self._front):
            return None
        return self._delta(text, self._base + self._shown, None, None)

    def end(self) -> Delta:
        """The delta of a choice that generates nothing."""
        return self._last("", "length", None, cut=False)

    def _raw(self, event: Generated) -> bytes:
        """A token's bytes; none if it ends the text and is not to be kept."""
        if event.finish == "stop" and not self._body.include_stop_str_in_output:
            return b""
        return self._model.token_raw(event.token, special=not self._body.skip_special_tokens)

    def _stops(self, event: Generated) -> bool:
        """Whether it is one of `stop_token_ids`; the end symbol by itself is no such reason."""
        end = event.token == self._model.tokenizer.end_id and not self._body.ignore_eos
        return event.finish == "stop" and not end

    def _last(self, text: str, finish: str, reason: str | int | None, *, cut: bool) -> Delta:
        self.finished = True
        return self._delta(text, self._base + self._shown if cut else None, finish, reason)

    def _delta(
        self, text: str, before: int | None, finish: str | None, reason: str | int | None
    ) -> Delta:
        """With the tokens that begin before a character; with all that are left for None."""
        ready = [e for e in self._entries if before is None or e.offset < before]
        self._entries = self._entries[len(ready) :]
        columns = Columns()
        if self._lister.wanted:
            columns.add(ready)
        first, self._first = self._first, False
        front = self._front if first else ""
        ids = [entry.token for entry in ready]
        return Delta(front + text, first, columns, ids, finish, reason)
