"""Turns a batch's outputs into events of its sequences. Changes nothing but these sequences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from app.engine.planner import Piece, Step
from app.engine.runtime.outputs import Alternatives, Outputs
from app.engine.sampling.adaptive import Draw, draw
from app.engine.sampling.distributions import NextDistributions
from app.engine.sampling.draw import Sampling, sample
from app.engine.sampling.logits_processors import History
from app.engine.sequence import (
    Distribution,
    Event,
    Failed,
    Generated,
    Generation,
    Scored,
    Sequence,
    Top,
    ranks_of,
    top_of,
)

_INVALID = Failed("the model gave a log-probability that is no finite number")


@dataclass(slots=True)
class Assignment:
    """A piece and the sequence it belongs to."""

    sequence: Sequence
    piece: Piece | Step


def draws(picked: list[Assignment]) -> list[Draw | None]:
    """How the next token of each row whose distribution is wanted is drawn; None for rows whose
    full distribution is wanted."""
    drawn: list[Draw | None] = []
    for assignment in picked:
        sequence, rows = assignment.sequence, len(assignment.piece.next_rows)
        if rows:
            drawn += [None] * (rows - 1)
            drawn.append(_draw_of(sequence) if sequence.computed == sequence.rows else None)
    return drawn


def _draw_of(sequence: Sequence) -> Draw | None:
    """For a sequence that has computed its last row."""
    follow = sequence.follow
    if not isinstance(follow, Generation) or follow.top or not follow.sampling.drawn_head_first:
        return None
    return follow.sampling, len(sequence.generated)


def results(picked: list[Assignment], outputs: Outputs) -> list[tuple[Sequence, Event]]:
    """The events of a batch.

    A stream gets its next token. A sequence that was cancelled meanwhile may have events or none.
    A sequence fails if a log-probability of its rows is not finite: bans of a request apply later.
    """
    return _Reader(picked, outputs).events()


class _Reader:
    """Reads the outputs of a batch, piece by piece."""

    def __init__(self, picked: list[Assignment], outputs: Outputs) -> None:
        self.picked, self.outputs = picked, outputs
        self.distributions = outputs.next_distributions
        self.invalid = self.distributions.invalid
        logprobs, alternatives = outputs.logprobs, outputs.alternatives.logprobs
        self.all_finite = bool(np.isfinite(logprobs).all() and np.isfinite(alternatives).all())
        self.tokens = _next_tokens(picked, self.distributions, self.invalid)
        self.scored = self.with_alternatives = self.next_row = 0  # rows read so far, by kind

    def events(self) -> list[tuple[Sequence, Event]]:
        """The events of all pieces."""
        events: list[tuple[Sequence, Event]] = []
        for assignment in self.picked:
            sequence, piece = assignment.sequence, assignment.piece
            if isinstance(piece, Step):  # thousands a second
                row, self.next_row = self.next_row, self.next_row + 1
                token = self.tokens.get(sequence)
                if token is not None:
                    events.append((sequence, _generate(sequence, self.distributions, row, token)))
                elif row in self.invalid:
                    events.append((sequence, _INVALID))
            else:
                events += [(sequence, event) for event in self._events_of(sequence, piece)]
        return events

    def _events_of(self, sequence: Sequence, piece: Piece) -> list[Event]:
        scored = self._scored(piece)
        rows = range(self.next_row, self.next_row + len(piece.next_rows))
        self.next_row = rows.stop
        valid = self.all_finite or np.isfinite(scored.logprobs).all()
        if not valid or not self.invalid.isdisjoint(rows):
            return [_INVALID]
        return [] if sequence.closed else self._wanted(sequence, scored, rows)

    def _scored(self, piece: Piece) -> Scored:
        count = len(piece.targets)
        if piece.top:
            rows = slice(self.with_alternatives, self.with_alternatives + count)
            self.with_alternatives = rows.stop
            return _with_alternatives(self.outputs.alternatives, rows, piece.top)
        rows = slice(self.scored, self.scored + count)
        self.scored = rows.stop
        return Scored(self.outputs.logprobs[rows].copy(), None)

    def _wanted(self, sequence: Sequence, scored: Scored, rows: range) -> list[Event]:
        """scored: the piece's rows. rows: of `distributions`, those of the sequence."""
        distributions = self.distributions
        ends = sequence.follow is not None and sequence.computed == sequence.rows
        if sequence.needs_distribution:
            scored_rows = rows[: len(rows) - ends]
            events = _read(sequence, distributions, scored_rows, sequence.computed - ends)
        else:
            events = [scored] if len(scored.logprobs) else []
        if not ends:
            return events
        if isinstance(sequence.follow, Generation):
            token = self.tokens[sequence]
            return [*events, _generate(sequence, distributions, rows[-1], token)]
        return [*events, Distribution(distributions.full(rows[-1:])[0].copy())]


def _with_alternatives(batch: Alternatives, rows: slice, count: int) -> Scored:
    """Rows of a batch with `count` alternatives each: another piece may have more."""
    top = Top(batch.ids[rows, :count].copy(), batch.top[rows, :count].copy())
    return Scored(batch.logprobs[rows].copy(), top, batch.ranks[rows].copy())


def _next_tokens(
    picked: list[Assignment], distributions: NextDistributions, invalid: frozenset[int]
) -> dict[Sequence, int]:
    """The next tokens of all streams that have computed their last row, drawn together."""
    full: list[tuple[Sequence, int, Sampling]] = []
    head_first: list[tuple[Sequence, int, Sampling]] = []
    row = -1  # the last one passed
    for assignment in picked:
        sequence = assignment.sequence
        row += len(assignment.piece.next_rows)
        follow = sequence.follow
        done = not sequence.closed and sequence.computed == sequence.rows
        if done and isinstance(follow, Generation) and row not in invalid:
            adaptive = distributions.tails and follow.sampling.drawn_head_first
            (head_first if adaptive else full).append((sequence, row, follow.sampling))
    drawn: list[int] = []
    if full:
        histories: list[History] = [stream.generated for stream, _, _ in full]
        logprobs = distributions.full([row for _, row, _ in full])
        drawn += sample(logprobs, [sampling for _, _, sampling in full], histories)
    if head_first:
        keys = [(sampling, len(stream.generated)) for stream, _, sampling in head_first]
        drawn += draw(distributions, [row for _, row, _ in head_first], keys)
    return dict(zip((stream for stream, _, _ in full + head_first), drawn, strict=True))


def _read(
    sequence: Sequence, distributions: NextDistributions, rows: range, stop: int
) -> list[Event]:
    """Alternatives, ranks and scores from full distributions. stop: the sequence's row after."""
    if not rows:
        return []
    targets = sequence.tokens[stop - len(rows) + 1 : stop + 1]
    logprobs = distributions.full(rows)
    scores = logprobs[np.arange(len(rows)), targets]
    return [Scored(scores, top_of(logprobs, sequence.top), ranks_of(logprobs, scores))]


def _generate(
    sequence: Sequence, distributions: NextDistributions, row: int, token: int
) -> Generated:
    generation = sequence.follow
    assert isinstance(generation, Generation)
    top = top_of(distributions.full([row]), generation.top) if generation.top else None
    event = Generated(token, distributions.logprob(row, token), top, None)
    if token in generation.end_ids:
        event.finish = "stop"
    elif len(sequence.generated) + 1 == generation.max_tokens:
        event.finish = "length"
    else:
        sequence.generated.append(token)
    return event
