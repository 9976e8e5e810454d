"""What a batch's outputs mean for its sequences. Touches nothing but these sequences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from app.engine.planner import Piece, Step
from app.engine.sampling import sample
from app.engine.sequence import (
    Distribution,
    Event,
    Generated,
    Generation,
    Scored,
    Sequence,
    ranks_of,
    top_of,
)
from model.graph import Floats


@dataclass(frozen=True, slots=True)
class Assignment:
    """A piece and the sequence it belongs to."""

    sequence: Sequence
    piece: Piece | Step


def results(
    picked: list[Assignment], logprobs: Floats, following: Floats
) -> list[tuple[Sequence, Event]]:
    """The events of a batch: logprobs float32 [N], following float32 [M, V].

    A stream gets its next token. A sequence that was cancelled meanwhile may have events or none.
    """
    events: list[tuple[Sequence, Event]] = []
    tokens = _sampled(picked, following)
    scored = wanted = 0
    for assignment in picked:
        sequence, piece = assignment.sequence, assignment.piece
        own = logprobs[scored : scored + len(piece.targets)]
        rows = following[wanted : wanted + len(piece.following)]
        scored += len(piece.targets)
        wanted += len(piece.following)
        if not sequence.closed:
            found = _results(sequence, own, rows, tokens.get(sequence))
            events += [(sequence, event) for event in found]
    return events


def _sampled(picked: list[Assignment], following: Floats) -> dict[Sequence, int]:
    """The next tokens of all streams that have computed their last row, chosen together."""
    streams, places, samplings = [], [], []
    wanted = 0
    for assignment in picked:
        sequence = assignment.sequence
        wanted += len(assignment.piece.following)
        done = not sequence.closed and sequence.computed == sequence.rows
        if done and isinstance(sequence.follow, Generation):
            streams.append(sequence)
            places.append(wanted - 1)
            samplings.append(sequence.follow.sampling)
    if not streams:
        return {}
    rows = following[: len(streams)]
    if places != list(range(len(streams))):  # else megabytes would be copied for nothing
        rows = following[places]
    tokens = sample(rows, samplings, [stream.generated for stream in streams])
    return dict(zip(streams, tokens, strict=True))


def _results(sequence: Sequence, own: Floats, rows: Floats, token: int | None) -> list[Event]:
    events: list[Event] = []
    follow = sequence.follow is not None and sequence.computed == sequence.rows
    if sequence.top:
        scored = rows[: len(rows) - follow]
        if len(scored):
            first = sequence.computed - follow - len(scored)
            targets = sequence.tokens[first + 1 : first + 1 + len(scored)]
            own = scored[np.arange(len(scored)), targets]
            top = top_of(scored, sequence.top)
            events.append(Scored(own, top, ranks_of(scored, own)))
    elif len(own):
        events.append(Scored(own.copy(), None))
    if not follow:
        return events
    if isinstance(sequence.follow, Generation):
        assert token is not None
        return [*events, _generate(sequence, sequence.follow, rows[-1], token)]
    return [*events, Distribution(rows[-1].copy())]


def _generate(sequence: Sequence, generation: Generation, row: Floats, token: int) -> Generated:
    position = len(sequence.generated)
    top = top_of(row[None], generation.top) if generation.top else None
    event = Generated(token, float(row[token]), top, None)
    if token in generation.end_ids:
        return Generated(event.token, event.logprob, top, "stop")
    if position + 1 == generation.max_tokens:
        return Generated(event.token, event.logprob, top, "length")
    sequence.generated.append(token)
    return event
