"""One prompt and one choice of a completion: turns tokens into text and lists of logprobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from app.api.completion_options import count_of
from app.api.json_stream import Part, elements, extend, object_of_arrays
from app.engine.sequence import Generated, Scored, Top
from app.text.stops import TextStream
from app.wire.completions import CompletionRequest

if TYPE_CHECKING:
    from app.lm.model import LanguageModel
    from app.lm.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Entry:
    """A token in the lists; `offset` counts characters of the choice's text."""

    token: int
    name: str
    logprob: np.float32 | None
    top: dict[str, np.float32] | None
    offset: int


@dataclass(slots=True)
class Columns:
    """OpenAI's legacy `logprobs`: the elements of four parallel arrays, without their brackets.

    They are kept as JSON text: a list of millions needs no more memory.
    """

    tokens: bytearray = field(default_factory=bytearray)
    token_logprobs: bytearray = field(default_factory=bytearray)
    top_logprobs: bytearray = field(default_factory=bytearray)
    text_offset: bytearray = field(default_factory=bytearray)

    def add(self, entries: list[Entry]) -> None:
        """Appends entries."""
        if entries:
            extend(self.tokens, elements([entry.name for entry in entries]))
            extend(self.token_logprobs, elements([entry.logprob for entry in entries]))
            extend(self.top_logprobs, elements([entry.top for entry in entries]))
            extend(self.text_offset, elements([entry.offset for entry in entries]))

    def extend(self, other: Columns) -> None:
        """Appends the entries of another."""
        for name in Columns.__slots__:
            extend(getattr(self, name), getattr(other, name))


def logprobs_object(*columns: Columns) -> list[Part]:
    """The object with the entries of all, in order, in parts."""
    return object_of_arrays(
        {name: [getattr(each, name) for each in columns] for name in Columns.__slots__}
    )


@dataclass(frozen=True, slots=True)
class Delta:
    """Text that can no longer change, its tokens, and the finish reason if it is the last.

    first: whether it is the first of the choice, which begins with the prompt if that is echoed.
    """

    text: str
    first: bool
    columns: Columns
    token_ids: list[int]
    finish: str | None
    stop_reason: str | int | None


class EntryFactory:
    """Makes the entries of listed tokens; tells whether tokens are listed at all."""

    def __init__(self, model: LanguageModel, body: CompletionRequest) -> None:
        self.model = model
        self.listed = body.logprobs is not None or body.logprob_token_ids is not None
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
    """The lists of a prompt's tokens, which all its choices share."""

    def __init__(self, factory: EntryFactory, prompt: Prompt, body: CompletionRequest) -> None:
        self.prompt = prompt
        self.ids: list[int] = prompt.ids[prompt.given :].tolist()
        self.columns = Columns()
        self.logprobs = bytearray(elements([None] if self.ids else []))
        """The elements of `prompt_logprobs`."""
        self._factory = factory
        self._echoed = body.echo and factory.listed
        self._count = count_of(factory.model, body.logprobs)
        self._wanted = body.prompt_logprobs
        self._read = 1
        if self._echoed and self.ids:
            self.columns.add([factory.entry(self.ids[0], None, None, 0, 0)])

    def scored(self, part: Scored) -> None:
        """Takes scores of the prompt's tokens, in order; the first token has none."""
        ids = self.ids[self._read : self._read + len(part.logprobs)]
        if self._echoed:
            top = part.top
            if top is not None and self._wanted is not None:  # which may have asked for more
                top = Top(top.ids[:, : self._count], top.logprobs[:, : self._count])
            starts = self.prompt.starts[self._read : self._read + len(ids)].tolist()
            rows = zip(ids, part.logprobs, starts, strict=True)
            self.columns.add(
                [
                    self._factory.entry(token, logprob, top, row, start)
                    for row, (token, logprob, start) in enumerate(rows)
                ]
            )
        if self._wanted is not None:
            ranked = [self._ranked(part, row, token) for row, token in enumerate(ids)]
            extend(self.logprobs, elements(ranked))
        self._read += len(ids)

    def _ranked(self, part: Scored, row: int, token: int) -> dict[str, dict[str, object]]:
        """The prompt's token of a row, then the most probable ones, by id."""
        assert part.top is not None
        assert part.ranks is not None
        entries = {token: (part.logprobs[row], int(part.ranks[row]))}
        count = count_of(self._factory.model, self._wanted)
        best = zip(part.top.ids[row, :count].tolist(), part.top.logprobs[row], strict=False)
        for rank, (other, value) in enumerate(best, 1):
            entries[other] = (value, rank)
        name = self._factory.model.token_string
        return {
            str(other): {"logprob": value, "rank": rank, "decoded_token": name(other)}
            for other, (value, rank) in entries.items()
        }


class ChoiceWriter:
    """Collects a choice's tokens and gives their text once later tokens cannot change it."""

    def __init__(self, factory: EntryFactory, prompt: Prompt, body: CompletionRequest) -> None:
        self._factory, self._model, self._body = factory, factory.model, body
        self.finished = False
        self._stream = TextStream(body.stop, keep_stop=body.include_stop_str_in_output)
        self._listing = factory.listed or body.return_token_ids
        self._entries: list[Entry] = []
        self._base = len(prompt.text) if body.echo else 0
        self._echo = prompt.text if body.echo else ""
        self._first = True
        self._shown = 0
        self._count = 0

    @property
    def joins(self) -> bool:
        """Whether tokens may be taken together: nothing is listed, searched or sent for each."""
        return not (self._listing or self._body.stop or self._body.stream)

    def generated(self, events: Sequence[Generated]) -> Delta | None:
        """Takes a generated token, or several if it `joins` them; a delta if they add text."""
        self._count += len(events)
        event = events[-1]
        last = event.finish is not None
        raw = b"".join(map(self._raw, events))
        if self._listing:
            offset = self._base + self._stream.offset_of(raw, last=last)
            logprob = np.float32(event.logprob)
            entry = self._factory.entry(event.token, logprob, event.top, 0, offset)
            self._entries.append(entry)
        text = self._stream.feed(raw, last=last, may_stop=self._count > self._body.min_tokens)
        self._shown += len(text)
        if self._stream.stopped is not None:
            return self._last(text, "stop", self._stream.stopped, cut=True)
        if event.finish is not None:
            reason = event.token if self._stops(event) else None
            return self._last(text, event.finish, reason, cut=False)
        if not text and not (self._first and self._echo):
            return None
        return self._delta(text, self._base + self._shown, None, None)

    def end(self) -> Delta:
        """The delta of a choice that generates nothing."""
        return self._last("", "length", None, cut=False)

    def _raw(self, event: Generated) -> bytes:
        """A token's bytes; none for a token that ends the text, unless it is to be kept."""
        if event.finish == "stop" and not self._body.include_stop_str_in_output:
            return b""
        return self._model.token_raw(event.token, special=not self._body.skip_special_tokens)

    def _stops(self, event: Generated) -> bool:
        """Whether the token is a `stop_reason`: one of `stop_token_ids`, not the end symbol."""
        end = event.token == self._model.tokenizer.end_id and not self._body.ignore_eos
        return event.finish == "stop" and not end

    def _last(self, text: str, finish: str, reason: str | int | None, *, cut: bool) -> Delta:
        self.finished = True
        return self._delta(text, self._base + self._shown if cut else None, finish, reason)

    def _delta(
        self, text: str, before: int | None, finish: str | None, reason: str | int | None
    ) -> Delta:
        """A delta with the tokens that begin before a character of the text, all for None."""
        ready = [e for e in self._entries if before is None or e.offset < before]
        self._entries = self._entries[len(ready) :]
        columns = Columns()
        if self._factory.listed:
            columns.add(ready)
        first, self._first = self._first, False
        echo = self._echo if first else ""
        ids = [entry.token for entry in ready]
        return Delta(echo + text, first, columns, ids, finish, reason)
