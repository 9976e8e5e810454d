"""What runs a batch, how its pieces become one, and which events its outputs are.

Reading outputs changes nothing but the sequences of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from app.engine.planner import Piece, Step, plan
from app.engine.policy import POLICY
from app.engine.runtime.outputs import Outputs
from app.engine.sampling.adaptive import Draw, draw, tail_terms
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
    top_of,
)
from model.core.config import Taps
from model.core.flat_batch import FlatBatch
from model.core.graph import Precision

_INVALID = Failed("the model gave a log-probability that is no finite number")


@dataclass(slots=True)
class Assignment:
    """A piece and the sequence it belongs to."""

    sequence: Sequence
    piece: Piece | Step


class Runner(Protocol):
    """Runs flat batches (`Session`, or a test's fake)."""

    taps: Taps
    precision: Precision
    multiple: int
    """The rows of a batch are filled up to a multiple of it."""
    tail_count: int
    """Tails of an adaptive softmax; 0 for a full one."""

    @property
    def build(self) -> str:
        """What decides the bits of a result besides the bundle."""
        ...

    def run(self, batch: FlatBatch) -> Outputs:
        """Runs a batch. Raises EngineError."""
        ...

    def check(self) -> None:
        """Raises EngineError if it computes wrong results."""
        ...


def flat_batch(picked: list[Assignment], runner: Runner) -> FlatBatch:
    """The batch of some pieces, for a runner."""
    draws: list[Draw | None] = []
    for assignment in picked if runner.tail_count else ():
        if rows := len(assignment.piece.next_rows):
            draws += [None] * (rows - 1)
            draws.append(_draw_after(assignment.sequence))
    tails = tail_terms(draws, runner.tail_count) if draws else None
    return plan([a.piece for a in picked], runner.taps, runner.multiple, tails)


def _draw_after(sequence: Sequence) -> Draw | None:
    """How the token after a piece is drawn; None if the row's full distribution is wanted."""
    follow = sequence.follow
    if sequence.computed < sequence.rows or not isinstance(follow, Generation) or follow.top:
        return None
    return (follow.sampling, len(sequence.generated)) if follow.sampling.drawn_head_first else None


def gets_all_cores(picked: list[Assignment], precision: Precision) -> bool:
    """Whether a batch gets all cores while nothing else runs: one text or prompt, or streams.

    Many short texts do not: their callers need the remaining cores to send the next requests. Nor
    do few rows in 8 bits, which gain nothing.
    """
    if all(a.sequence.streaming for a in picked):
        return precision == "float32"
    if len(picked) > 1:
        return False
    return precision != "int8" or picked[0].piece.rows >= POLICY.all_cores_rows_int8


def results(picked: list[Assignment], outputs: Outputs) -> list[tuple[Sequence, Event]]:
    """The events of a batch.

    A stream gets its next token. A sequence cancelled during the batch may have events or none. A
    sequence fails if a log-probability of its rows is not finite: bans of a request apply later.
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
        self.tokens = self._next_tokens()
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
                    events.append((sequence, self._generate(sequence, row, token)))
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
            batch = self.outputs.alternatives  # of which another piece may have more
            top = Top(batch.ids[rows, : piece.top].copy(), batch.top[rows, : piece.top].copy())
            return Scored(batch.logprobs[rows].copy(), top, batch.ranks[rows].copy())
        rows = slice(self.scored, self.scored + count)
        self.scored = rows.stop
        return Scored(self.outputs.logprobs[rows].copy(), None)

    def _wanted(self, sequence: Sequence, scored: Scored, rows: range) -> list[Event]:
        """A piece's events. scored: of its rows. rows: the sequence's rows of `distributions`."""
        ends = sequence.follow is not None and sequence.computed == sequence.rows
        scored_rows = rows[: len(rows) - ends]
        if sequence.needs_distribution and scored_rows:
            scored = self._read(sequence, scored_rows, sequence.computed - ends)
        events: list[Event] = [scored] if len(scored.logprobs) else []
        if ends and isinstance(sequence.follow, Generation):
            events.append(self._generate(sequence, rows[-1], self.tokens[sequence]))
        elif ends:
            events.append(Distribution(self.distributions.full(rows[-1:])[0].copy()))
        return events

    def _read(self, sequence: Sequence, rows: range, stop: int) -> Scored:
        """Scores, alternatives and ranks from distributions. stop: the sequence's row after."""
        targets = sequence.tokens[stop - len(rows) + 1 : stop + 1]
        logprobs = self.distributions.full(rows)
        scores = logprobs[np.arange(len(rows)), targets]
        ranks = np.count_nonzero(logprobs > scores[:, None], axis=1) + 1  # equal ones share it
        return Scored(scores, top_of(logprobs, sequence.top), np.asarray(ranks, np.int64))

    def _next_tokens(self) -> dict[Sequence, int]:
        """The next tokens of all streams that have computed their last row, drawn together."""
        full: list[tuple[Sequence, int, Sampling]] = []
        head_first: list[tuple[Sequence, int, Sampling]] = []
        row = -1  # the last one passed
        for assignment in self.picked:
            sequence = assignment.sequence
            row += len(assignment.piece.next_rows)
            follow = sequence.follow
            done = not sequence.closed and sequence.computed == sequence.rows
            if done and isinstance(follow, Generation) and row not in self.invalid:
                adaptive = self.distributions.tails and follow.sampling.drawn_head_first
                (head_first if adaptive else full).append((sequence, row, follow.sampling))
        drawn: list[int] = []
        if full:
            histories: list[History] = [stream.generated for stream, _, _ in full]
            logprobs = self.distributions.full([row for _, row, _ in full])
            drawn += sample(logprobs, [sampling for _, _, sampling in full], histories)
        if head_first:
            keys = [(sampling, len(stream.generated)) for stream, _, sampling in head_first]
            drawn += draw(self.distributions, [row for _, row, _ in head_first], keys)
        return dict(zip((stream for stream, _, _ in full + head_first), drawn, strict=True))

    def _generate(self, sequence: Sequence, row: int, token: int) -> Generated:
        generation, distributions = sequence.follow, self.distributions
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
