"""Penalties, biases and bans, applied to log-probabilities before sampling.

Elementwise in float32 for all streams together, so that a row's values depend on nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from model.core.graph import Floats, Indices

History = list[int] | range
"""Tokens that a stream has generated so far."""
_NO_IDS = np.zeros(0, np.int64)


class Counts:
    """How often each token was generated, updated as a stream goes on.

    prompt: tokens with an entry of count 0 from the start, int64 [p]. It is only read, so the
    choices of a prompt share it.
    """

    def __init__(self, prompt: Indices = _NO_IDS) -> None:
        self._prompt = prompt
        self._zeros = np.broadcast_to(np.float32(0), prompt.shape)
        self._begin()

    def _begin(self) -> None:
        self._ids = _NO_IDS
        self._times = np.zeros(0, np.float32)
        self._entries: dict[int, int] = {}
        self._read = 0

    def update(self, generated: History) -> tuple[Indices, Floats]:
        """The tokens that have entries, int64 [n], and their counts, float32 [n].

        A token of the prompt that was generated has two entries, of which the last counts.
        generated: all of a stream's tokens; those of the last call are not read again.
        """
        if len(generated) < self._read:
            self._begin()
        for token in generated[self._read :]:
            entry = self._entries.setdefault(token, len(self._entries))
            if entry == len(self._ids):
                self._ids = np.resize(self._ids, 2 * entry + 16)
                self._times = np.concatenate([self._times, np.zeros(entry + 16, np.float32)])
            self._ids[entry] = token
            self._times[entry] += 1
        self._read = len(generated)
        used = len(self._entries)
        if not len(self._prompt):
            return self._ids[:used], self._times[:used]
        ids = np.concatenate([self._prompt, self._ids[:used]])
        return ids, np.concatenate([self._zeros, self._times[:used]])


@dataclass(frozen=True, slots=True)
class LogitEdits:
    """The changes that one stream asks for, in the order in which they apply.

    repetition: factor on the log-probability of every token of `counts`. presence, frequency:
    subtracted from generated tokens once, and once for each time. bias_ids, bias: added, int64 and
    float32 [n]. allowed: the only tokens left, int64, or None for all. late: tokens banned until
    `min_tokens` have been generated, int64. bad_words: sequences of tokens whose last one may not
    follow the others, unless nothing else is left.
    """

    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    bias_ids: Indices = field(default_factory=lambda: _NO_IDS)
    bias: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    allowed: Indices | None = None
    late: Indices = field(default_factory=lambda: _NO_IDS)
    min_tokens: int = 0
    bad_words: tuple[tuple[int, ...], ...] = ()
    counts: Counts = field(default_factory=Counts, compare=False, repr=False)

    @property
    def counting(self) -> bool:
        """Whether the tokens generated so far matter."""
        return self.repetition != 1 or self.presence != 0 or self.frequency != 0


def apply(
    rows: Floats,
    streams: list[tuple[int, LogitEdits]],
    histories: list[History],
    banned: list[tuple[int, ...]],
) -> None:
    """Changes log-probabilities in place, float32 [n, V]: the rows of some streams.

    histories, banned: for each row, its generated tokens, and the tokens it never chooses.
    """
    _penalise(rows, streams, histories)
    for row, edits in streams:
        if len(edits.bias_ids):
            rows[row, edits.bias_ids] += edits.bias
        if edits.allowed is not None:
            kept = rows[row, edits.allowed]
            rows[row] = -np.inf
            rows[row, edits.allowed] = kept
        if len(edits.late) and len(histories[row]) < edits.min_tokens:
            rows[row, edits.late] = -np.inf
        if edits.bad_words:
            rows[row, list(banned[row])] = -np.inf
            _ban_words(rows[row], edits.bad_words, histories[row])


def _penalise(
    rows: Floats, streams: list[tuple[int, LogitEdits]], histories: list[History]
) -> None:
    counting = [(row, edits) for row, edits in streams if edits.counting]
    if not counting:
        return
    counts = [edits.counts.update(histories[row]) for row, edits in counting]
    sizes = [len(ids) for ids, _ in counts]
    ids = np.concatenate([ids for ids, _ in counts])
    times = np.concatenate([times for _, times in counts])
    entries = np.repeat([row for row, _ in counting], sizes), ids
    factors = [(edits.repetition, edits.presence, edits.frequency) for _, edits in counting]
    repetition, presence, frequency = np.repeat(np.array(factors, np.float32), sizes, axis=0).T
    # of two entries of a token, NumPy assigns the last
    rows[entries] = rows[entries] * repetition - presence * (times > 0) - frequency * times


def _ban_words(row: Floats, bad_words: Iterable[tuple[int, ...]], generated: History) -> None:
    ends = [
        word[-1]
        for word in bad_words
        if len(word) == 1 or tuple(generated[1 - len(word) :]) == word[:-1]
    ]
    kept = row[ends]
    row[ends] = -np.inf
    if not np.isfinite(row.max()):
        row[ends] = kept
