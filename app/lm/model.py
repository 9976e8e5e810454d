"""A language model: text in, scores and text out. Serves the API and the command line."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from app.engine.admission import Admission
from app.engine.engine import Caller, Engine
from app.engine.loop import Ticket
from app.engine.sequence import (
    Distribution,
    Failed,
    Finished,
    Generated,
    Generation,
    Scored,
    Top,
    TopWanted,
    top_of,
)
from app.engine.sequence import Sequence as Work
from app.engine.shared_prefixes import Text, prefix_tree
from app.errors import EngineError, NotReadyError, RequestError, TooLargeError
from app.settings import Settings
from app.text.stops import TextStream
from app.text.token_offsets import read_tokens
from app.text.words import Words, words_of
from model.core.bundle import Bundle
from model.core.graph import Floats, Indices
from model.core.measures import Totals, count_words
from model.core.text_cache import BLOCK, FORMULA, next_with_cache, with_cache
from model.core.tokenizer import Encoded

SPAN_ROWS = 8192
"""A longer text goes to the engine in spans, each behind R - 1 tokens of history."""
WINDOW_ROWS = 4 * SPAN_ROWS
"""Rows of one request with the engine at a time: a reader who lags holds back its own work."""
INLINE_CHARACTERS = 4096
"""What takes longer than so many characters or tokens is done on another thread."""
_NO_TOKEN = "there is no token to score"
_TEXTS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class TextTokens:
    """A text to score: its tokens behind what they are conditioned on.

    ids: int64 [given + N], the end symbol last if it is scored. given: tokens of the start symbol
    and the context that its first row can see; `context` counts them all but the start symbol.
    unscored: 1 where nothing is in front of the text, so that its own first token is among the
    given; else 0.
    """

    text: str
    encoded: Encoded
    ids: Indices
    given: int
    context: int
    eos_scored: bool
    unscored: int = 0
    before: Indices | None = None
    """All tokens in front, where `ids` has those alone that a first row sees."""

    @property
    def count(self) -> int:
        """N, the tokens that are scored."""
        return len(self.ids) - self.given

    @property
    def read(self) -> int:
        """The tokens that count as read: the text's own, and the end symbol if it is scored."""
        return self.count + self.unscored

    @property
    def document(self) -> Indices:
        """The text behind what a cache counts, int64 [n]; what lies before changes nothing."""
        before = self.ids[: self.given - self.unscored] if self.before is None else self.before
        counted = max(0, len(before) // BLOCK - 1) * BLOCK
        return np.concatenate([before[counted:], self.own])

    @property
    def own(self) -> Indices:
        """The text's tokens and the end symbol if it is scored, int64 [unscored + N]."""
        return self.ids[self.given - self.unscored :]


Result = TypeVar("Result")
TextOrIds = str | list[int]
"""A text, or its token ids."""


@dataclass(frozen=True, slots=True)
class TextGroup:
    """Texts of a request with one context. The fields are what errors call them."""

    texts: Sequence[TextOrIds]
    context: TextOrIds
    field: str
    context_field: str


@dataclass(frozen=True, slots=True)
class ScoredPart:
    """Scores of the next n tokens of a text. logprobs: float32 [n]; ranks: int64 [n].

    ranks: known where `top` is, 1 for the most probable.
    """

    logprobs: Floats
    top: Top | None
    ranks: Indices | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A continuation and its log-probability."""

    token: str
    token_ids: list[int]
    logprob: float


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a completion goes on from. ids: int64 [n], the start symbol first if it was text."""

    text: str
    ids: Indices
    given: int
    """Tokens in front that the caller did not send: the start symbol, or none."""
    starts: Indices
    """The character of `text` at which each token that the caller sent begins."""


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """How prompts are read. Token ids are taken as they are, but for `keep`.

    start: None puts the start symbol in front of texts, given; True as a token that the caller
    sent; False leaves it out. keep: tokens kept of each prompt, those at the end, or those at the
    beginning if the `side` to drop is the right. special: special symbols show in the text.
    """

    start: bool | None = None
    keep: int | None = None
    side: Literal["left", "right"] = "left"
    special: bool = False

    def kept(self, ids: Indices, count: int | None) -> Indices:
        """The last or the first `count`, all for None."""
        if count is None or len(ids) <= count:
            return ids
        return ids[len(ids) - count :] if self.side == "left" else ids[:count]


_AS_SENT = PromptOptions()


@dataclass(frozen=True, slots=True)
class Completing:
    """What comes of a prompt: its scores, if all choices share them, and what comes of each:
    scores, then tokens, several where several have arrived."""

    scores: AsyncGenerator[ScoredPart] | None
    choices: list[AsyncGenerator[ScoredPart | list[Generated]]]


class LanguageModel:
    """One bundle and the engine that runs it."""

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        admission: Admission,
        settings: Settings,
        name: str,
    ) -> None:
        self.bundle, self.engine, self.admission = bundle, engine, admission
        self.settings = settings
        self.tokenizer = bundle.tokenizer
        self.name = name
        build = f"{bundle.fingerprint} {engine.runner.build} cache {FORMULA}"
        self.precision = engine.runner.precision
        self.fingerprint = f"fp_{self.precision}_{hashlib.sha256(build.encode()).hexdigest()[:16]}"
        self._halo = bundle.config.model.receptive_field - 1
        self._strings: dict[int, str] = {}
        """Of tokens that have been named: a list of alternatives names thousands."""

    # Tokens

    async def encode(self, text: str, field: str) -> Encoded:
        """A text's own tokens. Raises TooLargeError, which calls the text by `field`."""
        limit = self.settings.max_request_tokens
        if len(text) <= INLINE_CHARACTERS:
            encoded = self.tokenizer.encode(text)
        else:
            encoded = await asyncio.to_thread(self.tokenizer.encode, text, limit)
        self._check_tokens(len(encoded.ids), field)
        return encoded

    def known(self, tokens: Sequence[int], field: str) -> Indices:
        """Token ids of a request, int64 [n]. Raises TooLargeError, RequestError.

        tokens: at least 0 and below 2**63. field: what errors call them.
        """
        self._check_tokens(len(tokens), field)
        ids = np.array(tokens, np.int64)
        unknown = np.flatnonzero(ids >= self.tokenizer.size)
        if len(unknown):
            raise RequestError(
                f"{field}: token id {ids[unknown[0]]} at place {unknown[0]} is not in the "
                f"vocabulary, 0 to {self.tokenizer.size - 1}",
                field,
            )
        return ids

    # Scoring

    async def tokenise(
        self,
        texts: Sequence[TextOrIds],
        context: TextOrIds,
        *,
        add_eos: bool,
        start: bool = True,
        fields: tuple[str, str] = ("input", "context"),
    ) -> list[TextTokens]:
        """Tokens of texts to score. Raises TooLargeError, RequestError.

        Token ids are taken as they are. start: whether the start symbol is in front. fields: what
        errors call the texts and the context.
        """
        first = texts[0]
        plain = len(texts) == 1 and start and not context
        if plain and isinstance(first, str) and 0 < len(first) <= INLINE_CHARACTERS:
            return [self._tokenise_one(first, fields[0], add_eos=add_eos)]
        groups = [TextGroup(texts, context, *fields)]
        return (await self.tokenise_groups(groups, add_eos=add_eos, start=start))[0]

    def _tokenise_one(self, text: str, field: str, *, add_eos: bool) -> TextTokens:
        encoded = self.tokenizer.encode(text)
        own = len(encoded.ids)
        self._check_tokens(own + add_eos, field)
        if not own + add_eos:
            raise RequestError(f"{field}: {_NO_TOKEN}", field)
        ids = np.empty(1 + own + add_eos, np.int64)
        ids[0], ids[1 : own + 1] = self.tokenizer.start_id, encoded.ids
        if add_eos:
            ids[-1] = self.tokenizer.end_id
        return TextTokens(text, encoded, ids, 1, 0, add_eos)

    async def tokenise_groups(
        self, groups: Sequence[TextGroup], *, add_eos: bool, start: bool = True
    ) -> list[list[TextTokens]]:
        """As `tokenise` for each group of texts, which share a context and the request's limits."""
        count = 0
        for group in groups:
            count += len(group.texts)
            self._check_texts(count, group.field)
            for index, text in enumerate(group.texts):
                if not len(text) and not add_eos:
                    name = _entry(group.field, index, len(group.texts))
                    raise RequestError(
                        f"{name}: an empty text has nothing to score; "
                        "set add_eos to score its end symbol",
                        name,
                    )

        def tokens() -> list[list[TextTokens]]:
            found: list[list[TextTokens]] = []
            read = 0
            for group in groups:
                found.append(list(self._tokenise(group, read, add_eos=add_eos, start=start)))
                read += found[-1][0].context + sum(text.read for text in found[-1])
            return found

        size = sum(len(g.context) + sum(len(text) for text in g.texts) for g in groups)
        return await by_size(size, tokens)

    def _tokenise(
        self, group: TextGroup, total: int, *, add_eos: bool, start: bool
    ) -> Iterator[TextTokens]:
        """The tokens of a group's texts, behind `total` others of the request."""
        limit = self.settings.max_request_tokens
        before = self._context(group, limit - total)
        total += len(before)
        self._check_tokens(total, group.context_field)
        head = all_before = np.array([self.tokenizer.start_id] if start else [], np.int64)
        if len(before):  # every text has a copy of what its first row sees
            all_before = np.concatenate([head, before])
            head = all_before[-self._halo - 1 :]
        tail = np.array([self.tokenizer.end_id] if add_eos else [], np.int64)
        unscored = 0 if len(head) else 1
        for place, (text, encoded) in enumerate(self._encoded(group, limit - total)):
            total += len(encoded.ids) + len(tail)
            self._check_tokens(total, group.field)
            ids = np.concatenate([head, encoded.ids.astype(np.int64), tail])
            if len(ids) <= len(head) + unscored:
                name = _entry(group.field, place, len(group.texts))
                alone = "; the first is scored only behind the start symbol or a context"
                raise RequestError(f"{name}: {_NO_TOKEN}{alone if unscored else ''}", name)
            given = len(head) + unscored
            yield TextTokens(text, encoded, ids, given, len(before), add_eos, unscored, all_before)

    def _context(self, group: TextGroup, limit: int) -> Indices:
        if not group.context:
            return np.zeros(0, np.int64)
        if isinstance(group.context, str):
            return self.tokenizer.encode(group.context, limit).ids.astype(np.int64)
        return self.known(group.context, group.context_field)

    def _encoded(self, group: TextGroup, limit: int) -> Iterator[tuple[str, Encoded]]:
        """Each text with its tokens; once there are more than the limit, the rest is not read."""
        for first in range(0, len(group.texts), _TEXTS_AT_ONCE):
            some = group.texts[first : first + _TEXTS_AT_ONCE]
            encoded = self._encode([text for text in some if isinstance(text, str)], limit)
            for place, text in enumerate(some, first):
                if isinstance(text, str):
                    found = text, next(encoded)
                else:
                    name = _entry(group.field, place, len(group.texts))
                    found = read_tokens(self.tokenizer, self.known(text, name))
                limit -= len(found[1].ids)
                yield found

    def _encode(self, texts: Sequence[str], limit: int) -> Iterator[Encoded]:
        if sum(len(text) for text in texts) <= _TEXTS_AT_ONCE * INLINE_CHARACTERS:
            yield from self.tokenizer.encode_many(texts)
            return
        for text in texts:
            encoded = self.tokenizer.encode(text, limit)
            limit -= len(encoded.ids)
            yield encoded

    async def score(
        self, texts: Sequence[TextTokens], top: int, *, cache: bool = False
    ) -> AsyncGenerator[tuple[int, ScoredPart]]:
        """Scores as they come: (index of the text, its next part), texts in order.

        cache: whether what a text has said so far is mixed in (`model.core.text_cache`); not with
        `top`.

        Raises OverloadError before the first, EngineError at any time.
        """
        total = sum(text.count for text in texts)
        with self.admission.admitted(total, self.engine.tokens_per_second):
            async with self.engine.caller() as caller:
                scores = self._windowed(caller, texts, top)
                async for item in _cached(scores, texts) if cache else scores:
                    yield item

    async def score_one(
        self, text: TextTokens, top: int, *, cache: bool = False
    ) -> list[ScoredPart]:
        """What `score` gives for one text, all at once: for texts of few tokens."""
        with self.admission.admitted(text.count, self.engine.tokens_per_second):
            caller = Caller(self.engine)
            tickets = caller.submit(self._spans(text, top))
            try:
                found: list[ScoredPart] = []
                for ticket in tickets:
                    while (part := await _next_scores(ticket)) is not None:
                        found.append(part)
                return [await _with_cache(text, found)] if cache else found
            finally:
                caller.cancel(*tickets)

    async def _windowed(
        self, caller: Caller, texts: Sequence[TextTokens], top: int
    ) -> AsyncGenerator[tuple[int, ScoredPart]]:
        groups = self._groups(texts, top)
        flying: deque[tuple[int, list[_Branch]]] = deque()
        rows = 0
        more = True
        while more or flying:
            while more and rows < WINDOW_ROWS:
                group = next(groups, None)
                more = group is not None
                if group is not None:
                    submitted = _submitted(caller, group)
                    rows += sum(branch.rows for branch in set().union(*(b for _, b in submitted)))
                    flying += submitted
            if flying:
                index, branches = flying.popleft()
                for branch in branches:
                    async for part in branch.parts():
                        yield index, part
                    rows -= branch.rows if not branch.readers else 0

    def _groups(
        self, texts: Sequence[TextTokens], top: int
    ) -> Iterator[list[tuple[int, list[Work]]]]:
        """Sequences of consecutive texts by text, beginnings that they share among them."""
        group: list[int] = []
        rows = 0
        for index, text in enumerate(texts):
            long = text.count > SPAN_ROWS
            if group and (long or rows >= SPAN_ROWS):
                yield self._grown(texts, group, top)
                group, rows = [], 0
            if long:
                yield from ([(index, [span])] for span in self._spans(text, top))
            else:
                group.append(index)
                rows += text.count
        if group:
            yield self._grown(texts, group, top)

    def _grown(
        self, texts: Sequence[TextTokens], group: list[int], top: int
    ) -> list[tuple[int, list[Work]]]:
        paths = prefix_tree([Text(texts[i].ids, texts[i].given) for i in group], top, self._halo)
        return list(zip(group, paths, strict=True))

    def _spans(self, text: TextTokens, top: int) -> Iterator[Work]:
        first, end = text.given - 1, len(text.ids) - 1
        for row in range(first, end, SPAN_ROWS):
            begin = max(0, row - self._halo)
            tokens = text.ids[begin : min(row + SPAN_ROWS, end) + 1]
            yield Work(tokens, score_from=row - begin, top=top)

    async def words(self, text: TextTokens) -> Words:
        """The words of one text."""
        return await by_size(len(text.text), lambda: words_of(text.text, text.encoded))

    async def totals(self, text: TextTokens, logprobs: Floats) -> Totals:
        """The counts of one text (docs/reference/api.md). logprobs: float32 [N]."""
        return await by_size(len(text.text), lambda: self.totals_of(text, logprobs))

    def totals_of(self, text: TextTokens, logprobs: Floats) -> Totals:
        """As `totals`, on this thread."""
        unknown = self.tokenizer.unknown_id
        return Totals(
            float(logprobs.sum(dtype=np.float64)),
            text.count,
            count_words(text.text) + text.eos_scored,
            len(text.text.encode()),
            0 if unknown is None else int((text.encoded.ids == unknown).sum()),
        )

    # The next token

    async def next_tokens(
        self, text: TextOrIds, count: int, *, cache: bool = False
    ) -> tuple[list[Candidate], int]:
        """The `count` most probable tokens after a text, and the tokens of the text.

        cache: whether what the text has said is mixed in (`model.core.text_cache`).
        """
        if isinstance(text, str):
            own = (await self.encode(text, "input")).ids.astype(np.int64)
        else:
            sent = text
            own = await by_size(len(sent), lambda: self.known(sent, "input"))
        ids = np.concatenate([[self.tokenizer.start_id], own])
        with self.admission.admitted(len(ids), self.engine.tokens_per_second):
            async with self.engine.caller() as caller:
                work = Work(ids, score_from=len(ids) - 1, follow="distribution")
                (ticket,) = caller.submit([work])
                row = (await _distribution(ticket)).logprobs
        if cache:
            row = next_with_cache(ids, row)
        top = top_of(row[None], count)
        found = [
            Candidate(self.token_string(int(i)), [int(i)], float(p))
            for i, p in zip(top.ids[0], top.logprobs[0], strict=True)
        ]
        return found, len(ids) - 1

    async def rank(
        self, text: TextOrIds, candidates: Sequence[str], *, cache: bool = False
    ) -> tuple[list[Candidate], int]:
        """Candidates by falling log-probability after a text, and all tokens read.

        cache: as for `next_tokens`.
        """
        self._check_texts(len(candidates), "candidates")
        texts = await self._candidates(candidates, text)
        parts: list[list[Floats]] = [[] for _ in texts]
        async with aclosing(self.score(texts, top=0, cache=cache)) as scores:
            async for index, part in scores:
                parts[index].append(part.logprobs)
        found = [
            Candidate(t.text, t.encoded.ids.tolist(), float(np.concatenate(p).sum(dtype=float)))
            for t, p in zip(texts, parts, strict=True)
        ]
        tokens = texts[0].context + sum(t.count for t in texts)
        return sorted(found, key=lambda c: -c.logprob), tokens

    async def _candidates(self, candidates: Sequence[str], text: TextOrIds) -> list[TextTokens]:
        for index, candidate in enumerate(candidates):
            if not candidate:
                name = _entry("candidates", index, len(candidates))
                raise RequestError(f"{name}: an empty candidate has no probability", name)
        names = ("candidates", "input")
        return await self.tokenise(candidates, text, add_eos=False, fields=names)

    # Completion

    async def prompts(
        self,
        prompts: Sequence[str | list[int]],
        field: str = "prompt",
        options: PromptOptions = _AS_SENT,
    ) -> list[Prompt]:
        """Prompts as tokens. Raises TooLargeError, RequestError.

        field: what errors call them.
        """
        size = sum(len(prompt) for prompt in prompts)
        return await by_size(size, lambda: list(self._prompts(prompts, field, options)))

    def _prompts(
        self, prompts: Sequence[str | list[int]], field: str, options: PromptOptions
    ) -> Iterator[Prompt]:
        total = 0
        for index, prompt in enumerate(prompts):
            name = _entry(field, index, len(prompts))
            if isinstance(prompt, str):
                made = self._text_prompt(prompt, total, (field, name), options)
            else:
                made = self._id_prompt(prompt, total, (field, name), options)
            total += len(made.ids) - made.given
            self._check_tokens(total, field)
            yield made

    def _text_prompt(
        self, text: str, before: int, names: tuple[str, str], options: PromptOptions
    ) -> Prompt:
        """before: tokens of the prompts before it. names: of the field, and of this prompt."""
        tokenizer = self.tokenizer
        encoded = tokenizer.encode(text, self.settings.max_request_tokens - before)
        self._check_tokens(before + len(encoded.ids), names[0])
        keep = options.keep if options.keep is None else options.keep - (options.start is True)
        ids = options.kept(encoded.ids.astype(np.int64), keep)
        starts = encoded.starts.astype(np.int64)
        if len(ids) < len(encoded.ids):
            text, starts = self._shown(ids, special=options.special)
        if options.start is False:
            if not len(ids):
                raise RequestError(
                    f"{names[1]}: an empty prompt needs its start symbol; leave out "
                    "add_special_tokens",
                    names[1],
                )
            return Prompt(text, ids, 0, starts)
        ids = np.concatenate([[tokenizer.start_id], ids]).astype(np.int64)
        if options.start is None:
            return Prompt(text, ids, 1, starts)
        symbol = self.token_raw(tokenizer.start_id, special=options.special).decode()
        starts = np.concatenate([[0], starts + len(symbol)]).astype(np.int64)
        return Prompt(symbol + text, ids, 0, starts)

    def _id_prompt(
        self, prompt: list[int], before: int, names: tuple[str, str], options: PromptOptions
    ) -> Prompt:
        self._check_tokens(before + len(prompt), names[0])
        size = self.tokenizer.size
        for place, token in enumerate(prompt):
            if not 0 <= token < size:
                raise RequestError(
                    f"{names[1]}: token id {token} at place {place} is not in the vocabulary, "
                    f"0 to {size - 1}",
                    names[1],
                )
        ids = options.kept(np.array(prompt, np.int64), options.keep)
        text, starts = self._shown(ids, special=options.special)
        return Prompt(text, ids, 0, starts)

    def _shown(self, ids: Indices, *, special: bool) -> tuple[str, Indices]:
        """The text of tokens, and the character at which each of them begins, int64 [n]."""
        stream, pieces, starts = TextStream(), [], []
        for token in ids.tolist():
            raw = self.token_raw(token, special=special)
            starts.append(stream.place_of(raw))
            pieces.append(stream.feed(raw))
        return "".join([*pieces, stream.feed(b"", last=True)]), np.array(starts, np.int64)

    def complete(
        self,
        caller: Caller,
        prompt: Prompt,
        generations: Sequence[Generation],
        top: TopWanted | None,
        choices: int,
    ) -> Completing:
        """Goes on from a prompt, as often as there are generations; all share the prompt's rows.

        With a `top`, every token that the caller sent but the first is scored, with these
        alternatives, for all of the `choices`.
        """
        scoring = top is not None and len(prompt.ids) > prompt.given + 1
        last = len(prompt.ids) - 1
        alone = scoring and choices == 1  # its one sequence scores the prompt too
        shared = None
        if scoring and not alone:
            shared = Work(prompt.ids, score_from=prompt.given, top=top or 0)
        elif len(generations) > 1 and last > 0:
            shared = Work(prompt.ids, score_from=last)
        follows: list[Generation | None] = [*generations]
        if alone and not follows:
            follows = [None]
        works = [] if shared is None else [shared]
        works += [
            Work(
                prompt.ids,
                score_from=prompt.given if alone else last,
                top=(top or 0) if alone else 0,
                follow=follow,
                parent=shared,
            )
            for follow in follows
        ]
        tickets = caller.submit(works) if works else []
        scores = _scores(tickets[0]) if scoring and not alone else None
        own = [_completed(caller, ticket) for ticket in tickets[shared is not None :]]
        return Completing(scores, own or [_nothing() for _ in range(choices)])

    # Shared

    def token_string(self, token: int) -> str:
        """A token's text, U+FFFD for bytes that are no characters; special symbols by name."""
        found = self._strings.get(token)
        if found is None:
            special = token in self.tokenizer.special_ids
            name = self.tokenizer.backend.id_to_token
            found = str(name(token)) if special else self.tokenizer.decode([token])
            self._strings[token] = found
        return found

    def token_raw(self, token: int, *, special: bool) -> bytes:
        """A token's bytes; of the start and the end symbol their names if `special`, else none."""
        if special and token in (self.tokenizer.start_id, self.tokenizer.end_id):
            return self.token_string(token).encode()
        return self.tokenizer.token_bytes[token]

    def _check_texts(self, count: int, field: str) -> None:
        limit = self.settings.max_request_texts
        if count > limit:
            raise TooLargeError(
                f"{field}: over the limit max_request_texts, {limit}: {count}", field
            )

    def _check_tokens(self, count: int, field: str) -> None:
        limit = self.settings.max_request_tokens
        if count > limit:
            raise TooLargeError(f"{field}: over the limit max_request_tokens, {limit}", field)


async def by_size(size: int, work: Callable[[], Result]) -> Result:
    """What `work` gives; done on another thread if it is about more characters or tokens than
    others could wait for."""
    return work() if size <= INLINE_CHARACTERS else await asyncio.to_thread(work)


def _entry(field: str, index: int, count: int) -> str:
    """What an error calls one of a field's texts."""
    return f"{field}.{index}" if count > 1 else field


async def _next(ticket: Ticket) -> Scored | Distribution | Generated | None:
    """A ticket's next event, None for the last. Raises EngineError, NotReadyError."""
    event = await ticket.events.get()
    if isinstance(event, Failed):
        raise _error(event)
    return None if isinstance(event, Finished) else event


def _error(event: Failed) -> Exception:
    return (NotReadyError if event.stopped else EngineError)(event.message)


class _Branch:
    """A submitted sequence whose scores are of one text, or of several that begin alike."""

    def __init__(self, ticket: Ticket, readers: int) -> None:
        self.ticket, self.readers = ticket, readers
        self.rows = ticket.sequence.rows
        self._read: list[ScoredPart] | None = None

    async def parts(self) -> AsyncGenerator[ScoredPart]:
        """Its scores, for one of the texts."""
        self.readers -= 1
        if self._read is not None:
            for part in self._read:
                yield part
            return
        kept = []
        async for part in _scores(self.ticket):
            if self.readers:
                kept.append(part)
            yield part
        self._read = kept


def _submitted(
    caller: Caller, group: list[tuple[int, list[Work]]]
) -> list[tuple[int, list[_Branch]]]:
    readers = Counter(work for _, path in group for work in path)
    tickets = caller.submit(list(readers))  # in order of appearance: parents come first
    branches = {t.sequence: _Branch(t, readers[t.sequence]) for t in tickets}
    return [(index, [branches[work] for work in path]) for index, path in group]


async def _next_scores(ticket: Ticket) -> ScoredPart | None:
    event = await _next(ticket)
    if event is None:
        return None
    assert isinstance(event, Scored)
    return ScoredPart(event.logprobs, event.top, event.ranks)


async def _scores(ticket: Ticket) -> AsyncGenerator[ScoredPart]:
    while (part := await _next_scores(ticket)) is not None:
        yield part


async def _completed(
    caller: Caller, ticket: Ticket
) -> AsyncGenerator[ScoredPart | list[Generated]]:
    lot: list[Generated] = []
    try:
        while True:
            event = await ticket.events.get()
            if isinstance(event, Generated):
                lot.append(event)
                if event.finish is None and not ticket.events.empty():
                    continue
            if lot:
                yield lot
                lot = []
            if isinstance(event, Scored):
                yield ScoredPart(event.logprobs, event.top, event.ranks)
            elif isinstance(event, Finished):
                return
            elif isinstance(event, Failed):
                raise _error(event)
    finally:
        caller.cancel(ticket)


async def _nothing() -> AsyncGenerator[ScoredPart | list[Generated]]:
    events: tuple[ScoredPart, ...] = ()
    for event in events:
        yield event


async def _cached(
    scores: AsyncGenerator[tuple[int, ScoredPart]], texts: Sequence[TextTokens]
) -> AsyncGenerator[tuple[int, ScoredPart]]:
    """Scores with the cache, those of a text in one part."""
    parts: list[ScoredPart] = []
    scored = 0
    async with aclosing(scores):
        async for index, part in scores:
            parts.append(part)
            scored += len(part.logprobs)
            if scored == texts[index].count:
                yield index, await _with_cache(texts[index], parts)
                parts, scored = [], 0


async def _with_cache(text: TextTokens, parts: list[ScoredPart]) -> ScoredPart:
    """All scores of a text, with the cache."""
    logprobs, ids = np.concatenate([part.logprobs for part in parts]), text.document
    if len(ids) <= BLOCK:  # some milliseconds
        return ScoredPart(with_cache(ids, logprobs), None)
    return ScoredPart(await asyncio.to_thread(with_cache, ids, logprobs), None)


async def _distribution(ticket: Ticket) -> Distribution:
    while (event := await _next(ticket)) is not None:
        if isinstance(event, Distribution):
            return event
    raise EngineError("the engine gave no distribution")
