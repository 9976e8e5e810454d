"""Words of a text, and which tokens belong to each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.core.graph import Floats, Indices
from model.core.tokenizer import Encoded

_LAST_SPACE = 0x3000
_SPACES = np.array([chr(code).isspace() for code in range(_LAST_SPACE + 1)] + [False])


@dataclass(frozen=True, slots=True)
class Words:
    """Runs of characters that are not white space. All arrays are int64.

    starts, ends: [W], characters of the text. tokens: [W + 1]; the tokens from tokens[w] to
    tokens[w + 1] belong to word w.
    """

    starts: Indices
    ends: Indices
    tokens: Indices

    def surprisals(self, logprobs: Floats) -> npt.NDArray[np.float64]:
        """The negative sum of each word's log-probabilities, float64 [W], in nats.

        logprobs: float [N], NaN for a token without one. A word has NaN if it has no token, or one
        without a log-probability.
        """
        counts = np.diff(self.tokens)
        owner = np.repeat(np.arange(len(counts)), counts)
        values = -logprobs[: len(owner)].astype(np.float64)
        sums = np.bincount(owner, values, minlength=len(counts))
        return np.where(counts > 0, sums, np.nan)


def words_of(text: str, encoded: Encoded) -> Words:
    """The words of a text and their tokens.

    A token belongs to the word of its first character that is not white space. A token of white
    space alone belongs to the next word, or at the end of the text to the last word. So every token
    belongs to one word if the text has any.
    """
    starts, ends = _runs(text)
    if not len(starts):
        return Words(starts, ends, np.zeros(1, np.int64))
    # the first word that ends after the token's start holds the token, or is the next word
    owner = np.searchsorted(ends[:-1], encoded.starts, side="right")
    tokens = np.searchsorted(owner, np.arange(len(starts) + 1))
    return Words(starts, ends, tokens)


def _runs(text: str) -> tuple[Indices, Indices]:
    """Where words begin and end, with the white space of `str.split`. int64 [W] each."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    letters = ~_SPACES[np.minimum(codes, _LAST_SPACE + 1)]
    edges = np.flatnonzero(np.diff(letters, prepend=False, append=False))
    return edges[::2], edges[1::2]
