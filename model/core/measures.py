"""Perplexities from sums of log-probabilities, by word and byte too, to compare tokenizers."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_WORD = re.compile(r"\S+")
_SPLIT_CHARACTERS = 4096
"""The words of a longer text are counted one by one: a list of them would take much memory."""


def count_words(text: str) -> int:
    """Number of runs of characters that are not white space."""
    if len(text) <= _SPLIT_CHARACTERS:
        return len(text.split())
    return sum(1 for _ in _WORD.finditer(text))


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over texts. `logprob_sum` is in nats; docs/reference/api.md says what counts."""

    logprob_sum: float = 0.0
    token_count: int = 0
    word_count: int = 0
    byte_count: int = 0
    unknown_count: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.logprob_sum + other.logprob_sum,
            self.token_count + other.token_count,
            self.word_count + other.word_count,
            self.byte_count + other.byte_count,
            self.unknown_count + other.unknown_count,
        )

    @property
    def perplexity(self) -> float | None:
        """exp(-logprob_sum / token_count)."""
        return _exp_mean(self.logprob_sum, self.token_count)

    @property
    def word_perplexity(self) -> float | None:
        """exp(-logprob_sum / word_count)."""
        return _exp_mean(self.logprob_sum, self.word_count)

    @property
    def fluency(self) -> float | None:
        """1 / (1 - logprob_sum / token_count), above 0 to 1 (Ge et al. 2018)."""
        if not self.token_count:
            return None
        return 1 / (1 - self.logprob_sum / self.token_count)

    @property
    def bits_per_byte(self) -> float | None:
        """-logprob_sum / (ln 2 * byte_count)."""
        if not self.byte_count:
            return None
        return -self.logprob_sum / (math.log(2) * self.byte_count)


def _exp_mean(logprob_sum: float, count: int) -> float | None:
    """exp(-sum / count); None if the count is 0 or the result is too large for a float64."""
    if not count:
        return None
    try:
        return math.exp(-logprob_sum / count)
    except OverflowError:
        return None
