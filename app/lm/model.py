"""A language model: one bundle, the engine that runs it, and what the API asks of both."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from app.engine.sequence import Distribution, Sequence, top_of
from app.errors import EngineError, RequestError
from app.lm.prompts import AS_SENT, Prompt, PromptOptions, PromptReader
from app.lm.scoring import Scores, next_event, sequence_groups
from app.lm.texts import TextGroup, TextOrIds, TextReader, TextTokens, tokens_read
from app.lm.threads import INLINE_CHARACTERS, by_size
from app.settings import Settings
from app.text.tokens import TokenNames
from model.core.bundle import Bundle
from model.core.graph import Floats
from model.core.measures import Totals, count_words
from model.core.text_cache import FORMULA, next_with_cache
from model.core.tokenizer import Encoded

if TYPE_CHECKING:
    from app.engine.admission import Admission
    from app.engine.engine import Engine
    from app.engine.tickets import Ticket


@dataclass(frozen=True, slots=True)
class Candidate:
    """A continuation and its log-probability."""

    token: str
    token_ids: list[int]
    logprob: float


class LanguageModel:
    """One bundle and the engine that runs it."""

    def __init__(
        self, bundle: Bundle, engine: Engine, admission: Admission, settings: Settings, name: str
    ) -> None:
        self.bundle, self.engine, self.admission = bundle, engine, admission
        self.settings = settings
        self.tokenizer = bundle.tokenizer
        self.name = name
        build = f"{bundle.fingerprint} {engine.runner.build} cache {FORMULA}"
        self.precision = engine.runner.precision
        self.fingerprint = f"fp_{self.precision}_{hashlib.sha256(build.encode()).hexdigest()[:16]}"
        self.halo = bundle.config.model.receptive_field - 1
        """R - 1: the tokens before a row that its score depends on."""
        self.reader = TextReader(self.tokenizer, settings, self.halo)
        names = TokenNames(self.tokenizer)
        self.token_string, self.token_raw = names.string, names.raw
        self._prompts = PromptReader(self.reader, names)

    # Tokens

    async def encode(self, text: str, field: str) -> Encoded:
        """A text's tokens. Raises TooLargeError, in which the text is called `field`."""
        return await by_size(len(text), lambda: self.reader.encode(text, field))

    async def tokenise(
        self, groups: list[TextGroup], *, add_eos: bool, start: bool = True
    ) -> list[list[TextTokens]]:
        """As `TextReader.read`. Raises TooLargeError, RequestError."""
        read = self.reader.read
        size = 0
        for group in groups:
            size += group.size
        if size <= INLINE_CHARACTERS:
            return read(groups, add_eos=add_eos, start=start)
        return await asyncio.to_thread(read, groups, add_eos=add_eos, start=start)

    async def prompts(
        self,
        prompts: Collection[TextOrIds],
        field: str = "prompt",
        options: PromptOptions = AS_SENT,
    ) -> list[Prompt]:
        """As `PromptReader.read`. Raises TooLargeError, RequestError."""
        size = sum(map(len, prompts))
        return await by_size(size, lambda: list(self._prompts.read(prompts, field, options)))

    # Scores

    def score(
        self,
        texts: list[TextTokens],
        top: int,
        *,
        cache: bool = False,
        bulk: bool = False,
        lines: bool = False,
    ) -> Scores:
        """The scores of texts, none of which is submitted yet.

        top: alternatives for each token. cache: whether what a text has said so far is mixed in
        (`model.core.text_cache`); not together with `top`. bulk, lines: as in `Scores`.
        """
        groups = sequence_groups(texts, top, self.halo)
        return Scores(
            self.engine, self.admission, texts, groups, cache=cache, bulk=bulk, lines=lines
        )

    def totals(self, text: TextTokens, logprobs: Floats) -> Totals:
        """The counts of a text (docs/reference/api.md). logprobs: float32 [N]."""
        unknown = self.tokenizer.unknown_id
        return Totals(
            float(logprobs.sum(dtype=np.float64)),
            text.scored,
            count_words(text.text) + text.eos_scored,
            len(text.text.encode()),
            0 if unknown is None else int((text.encoded.ids == unknown).sum()),
        )

    # The next token

    async def next_tokens(
        self, text: TextOrIds, count: int, *, cache: bool = False, bulk: bool = False
    ) -> tuple[list[Candidate], int]:
        """The `count` most probable tokens after a text, and the number of the text's tokens.

        cache: whether what the text has said is mixed in (`model.core.text_cache`). bulk: whether
        others' work goes first. Raises OverloadError.
        """
        if isinstance(text, str):
            text_ids = (await self.encode(text, "input")).ids.astype(np.int64)
        else:
            sent = text
            text_ids = await by_size(len(sent), lambda: self.reader.read_ids(sent, "input"))
        ids = np.concatenate([[self.tokenizer.start_id], text_ids])
        sequence = Sequence(ids, score_from=len(ids) - 1, follow="distribution")
        self.admission.admit(sequence.rows_due(self.halo), bulk=bulk)
        async with self.engine.caller(bulk=bulk) as caller:
            (ticket,) = caller.submit([sequence])
            logprobs = await _distribution(ticket)
        if cache:
            logprobs = next_with_cache(ids, logprobs)
        top = top_of(logprobs[None], count)
        candidates = [
            Candidate(self.token_string(int(i)), [int(i)], float(p))
            for i, p in zip(top.ids[0], top.logprobs[0], strict=True)
        ]
        return candidates, len(text_ids)

    async def rank(
        self, text: TextOrIds, candidates: list[str], *, cache: bool = False, bulk: bool = False
    ) -> tuple[list[Candidate], int]:
        """Candidates by falling log-probability after a text, and the number of all tokens read.

        cache, bulk: as for `next_tokens`.
        """
        self.settings.check_limit("candidates", len(candidates), "max_request_texts")
        group = TextGroup(candidates, text, "candidates", "input")
        for index, candidate in enumerate(candidates):
            if not candidate:
                name = group.name(index)
                raise RequestError(f"{name}: an empty candidate has no probability", name)
        (texts,) = await self.tokenise([group], add_eos=False)
        with self.score(texts, top=0, cache=cache, bulk=bulk) as scores:
            logprobs = [await scores.read_text(text) for text in texts]
        ranked = [
            Candidate(text.text, text.encoded.ids.tolist(), float(values.sum(dtype=float)))
            for text, values in zip(texts, logprobs, strict=True)
        ]
        return sorted(ranked, key=lambda c: -c.logprob), tokens_read(texts)


async def _distribution(ticket: Ticket) -> Floats:
    """The log-probabilities of every token after a sequence, float32 [V]. Raises EngineError."""
    while (event := await next_event(ticket)) is not None:
        if isinstance(event, Distribution):
            return event.logprobs
    raise EngineError("the engine gave no distribution")
