"""The options of a completion, as the engine takes them: sampling, ends, alternatives."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from app.engine.sampling.draw import Sampling
from app.engine.sampling.logits_processors import Counts, LogitEdits
from app.engine.sequence import Generation, TopWanted
from app.errors import RequestError
from app.wire.completions import CompletionRequest
from model.core.graph import Indices

if TYPE_CHECKING:
    from app.lm.model import LanguageModel
    from app.lm.prompts import Prompt

_TOGETHER = 32
"""Tokens that are taken at a time for an answer that is not streamed."""


class Generations:
    """Makes the generations of a request's choices. Raises RequestError for a bad token id."""

    def __init__(self, model: LanguageModel, body: CompletionRequest, seed: int) -> None:
        self.model, self.body, self.seed = model, body, seed
        tokenizer = model.tokenizer
        stops = model.reader.read_ids(body.stop_token_ids, "stop_token_ids")
        ends = set(stops.tolist())
        self.banned: tuple[int, ...] = (tokenizer.start_id,)
        if not body.ignore_eos:
            ends.add(tokenizer.end_id)
        elif tokenizer.end_id not in ends:
            self.banned = (tokenizer.start_id, tokenizer.end_id)
        self.ends = frozenset(ends)
        self._late = np.array(sorted(ends) if body.min_tokens else [], np.int64)
        self._bias_ids = model.reader.read_ids(list(body.logit_bias), "logit_bias")
        self._bias = np.array(list(body.logit_bias.values()), np.float32)
        self._allowed: Indices | None = None
        if body.allowed_token_ids is not None:
            self._allowed = np.unique(
                model.reader.read_ids(body.allowed_token_ids, "allowed_token_ids")
            )
        self._penalised: tuple[Prompt, Indices] | None = None
        self._bad_words = tuple(self._bad_word_tokens())
        self._check_tokens_left()
        named = body.logprob_token_ids
        if named is not None:
            model.reader.read_ids(named, "logprob_token_ids")
        self.top: TopWanted = (
            count_of(model, body.logprobs) if named is None else tuple(dict.fromkeys(named))
        )

    def of(self, prompt: Prompt, choice: int) -> Generation:
        """The generation of one choice."""
        body = self.body
        sampling = Sampling(
            body.temperature,
            max(body.top_k, 0),
            body.top_p,
            self.seed,
            choice,
            banned=self.banned,
            min_p=body.min_p,
            edits=self._edits(prompt),
        )
        # a stop string may end the text at any token, so later tokens could be wasted
        together = 1 if body.stream or body.stop else _TOGETHER
        return Generation(sampling, body.max_tokens, self.ends, self.top, together)

    def _edits(self, prompt: Prompt) -> LogitEdits | None:
        body = self.body
        edits = LogitEdits(
            body.repetition_penalty,
            body.presence_penalty,
            body.frequency_penalty,
            self._bias_ids,
            self._bias,
            self._allowed,
            self._late,
            body.min_tokens,
            self._bad_words,
            Counts(self._penalised_ids(prompt)),
        )
        changes = len(self._bias) or len(self._late) or self._bad_words or edits.counting
        return edits if changes or self._allowed is not None else None

    def _penalised_ids(self, prompt: Prompt) -> Indices:
        """The different tokens of a prompt to penalise, int64 [n], which its choices share."""
        if self.body.repetition_penalty == 1:
            return prompt.ids[:0]
        if self._penalised is None or self._penalised[0] is not prompt:
            sent = prompt.ids[prompt.given :]
            self._penalised = prompt, np.flatnonzero(np.bincount(sent))
        return self._penalised[1]

    def _bad_word_tokens(self) -> Iterable[tuple[int, ...]]:
        """The tokens of each bad word, as it is and after a space."""
        for index, word in enumerate(self.body.bad_words):
            if not word.strip():
                raise RequestError(f"bad_words.{index}: there is no word", f"bad_words.{index}")
            for spelled in dict.fromkeys((word, f" {word.lstrip()}")):
                yield tuple(self.model.tokenizer.encode(spelled).ids.tolist())

    def _check_tokens_left(self) -> None:
        left = np.full(self.model.tokenizer.size, self._allowed is None)
        if self._allowed is not None:
            left[self._allowed] = True
        left[list(self.banned)] = False
        left[self._late] = False
        left[[word[0] for word in self._bad_words if len(word) == 1]] = False
        if not left.any():
            name = "min_tokens" if self._allowed is None else "allowed_token_ids"
            raise RequestError(f"{name}: no token is left that may be generated", name)


def count_of(model: LanguageModel, wanted: int | None) -> int:
    """How many alternatives a field asks for; -1 stands for the vocabulary."""
    return model.tokenizer.size if wanted == -1 else wanted or 0
