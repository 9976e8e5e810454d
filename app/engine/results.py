"""What a batch's outputs mean for its sequences. Touches nothing but these sequences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from app.engine.planner import Piece, Step
from app.engine.runtime.outputs import Listed, Outputs
from app.engine.sampling.adaptive import Draw, draw
from app.engine.sampling.distributions import Following
from app.engine.sampling.draw import Sampling, sample
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

_BROKEN = Failed("the model gave a log-probability that is no finite number")


@dataclass(slots=True)
class Assignment:
    """A piece and the sequence it belongs to."""

    sequence: Sequence
    piece: Piece | Step


def draws(picked: list[Assignment]) -> list[Draw | None]:
    """What the rows of a batch whose distribution is wanted are drawn by; None if all of it is."""
    found: list[Draw | None] = []
    for assignment in picked:
        sequence, rows = assignment.sequence, len(assignment.piece.following)
        if rows:
            found += [None] * (rows - 1)
            found.append(_draw_of(sequence) if sequence.computed == sequence.rows else None)
    return found


def _draw_of(sequence: Sequence) -> Draw | None:
    """For a sequence that has computed its last row."""
    follow = sequence.follow
    if not isinstance(follow, Generation) or follow.top or not follow.sampling.by_cluster:
        return None
    return follow.sampling, len(sequence.generated)


def results(picked: list[Assignment], outputs: Outputs) -> list[tuple[Sequence, Event]]:
    """The events of a batch.

    A stream gets its next token. A sequence that was cancelled meanwhile may have events or none.
    One whose log-probabilities are no finite numbers has failed: only what a request bans has none.
    """
    events: list[tuple[Sequence, Event]] = []
    following = outputs.following
    broken = following.broken
    fine = bool(np.isfinite(outputs.logprobs).all() and np.isfinite(outputs.listed.logprobs).all())
    tokens = _drawn(picked, following, broken)
    scored = listed = wanted = 0
    for assignment in picked:
        sequence, piece = assignment.sequence, assignment.piece
        if isinstance(piece, Step):  # thousands a second
            token = tokens.get(sequence)
            if token is not None:
                events.append((sequence, _generate(sequence, following, wanted, token)))
            elif wanted in broken:
                events.append((sequence, _BROKEN))
            wanted += 1
            continue
        count = len(piece.targets)
        if piece.top:
            own = _listed(outputs.listed, slice(listed, listed + count), piece.top)
            listed += count
        else:
            own = Scored(outputs.logprobs[scored : scored + count].copy(), None)
            scored += count
        rows = range(wanted, wanted + len(piece.following))
        wanted += len(piece.following)
        if not (fine or np.isfinite(own.logprobs).all()) or not broken.isdisjoint(rows):
            events.append((sequence, _BROKEN))
        elif not sequence.closed:
            found = _results(sequence, own, following, rows, tokens.get(sequence))
            events += [(sequence, event) for event in found]
    return events


def _listed(listed: Listed, rows: slice, count: int) -> Scored:
    """Rows of a batch, with some of the alternatives: another piece may have more."""
    top = Top(listed.ids[rows, :count].copy(), listed.top[rows, :count].copy())
    return Scored(listed.logprobs[rows].copy(), top, listed.ranks[rows].copy())


def _drawn(
    picked: list[Assignment], following: Following, broken: frozenset[int]
) -> dict[Sequence, int]:
    """The next tokens of all streams that have computed their last row, chosen together."""
    streams: tuple[list[Sequence], list[Sequence]] = [], []
    rows: tuple[list[int], list[int]] = [], []
    clustered = bool(following.clusters)
    wanted = 0
    for assignment in picked:
        sequence = assignment.sequence
        wanted += len(assignment.piece.following)
        follow = sequence.follow
        done = not sequence.closed and sequence.computed == sequence.rows
        if done and isinstance(follow, Generation) and wanted - 1 not in broken:
            first = clustered and follow.sampling.by_cluster
            streams[first].append(sequence)
            rows[first].append(wanted - 1)
    tokens: dict[Sequence, int] = {}
    if streams[0]:
        histories = [stream.generated for stream in streams[0]]
        samplings = [_sampling(stream) for stream in streams[0]]
        found = sample(following.whole(rows[0]), samplings, histories)
        tokens.update(zip(streams[0], found, strict=True))
    if streams[1]:
        keys = [(_sampling(stream), len(stream.generated)) for stream in streams[1]]
        tokens.update(zip(streams[1], draw(following, rows[1], keys), strict=True))
    return tokens


def _sampling(stream: Sequence) -> Sampling:
    assert isinstance(stream.follow, Generation)
    return stream.follow.sampling


def _results(
    sequence: Sequence, own: Scored, following: Following, rows: range, token: int | None
) -> list[Event]:
    """own: of the piece's scored rows. rows: the sequence's of `following`."""
    follow = sequence.follow is not None and sequence.computed == sequence.rows
    if sequence.wide:
        events: list[Event] = _read(sequence, following, rows[: len(rows) - follow], follow=follow)
    else:
        events = [own] if len(own.logprobs) else []
    if not follow:
        return events
    if isinstance(sequence.follow, Generation):
        assert token is not None
        return [*events, _generate(sequence, following, rows[-1], token)]
    return [*events, Distribution(following.whole(rows[-1:])[0].copy())]


def _read(sequence: Sequence, following: Following, rows: range, *, follow: bool) -> list[Event]:
    """What the whole distributions of rows say of alternatives and targets."""
    if not rows:
        return []
    first = sequence.computed - follow - len(rows)
    targets = sequence.tokens[first + 1 : first + 1 + len(rows)]
    whole = following.whole(rows)
    own = whole[np.arange(len(whole)), targets]
    return [Scored(own, top_of(whole, sequence.top), ranks_of(whole, own))]


def _generate(sequence: Sequence, following: Following, row: int, token: int) -> Generated:
    generation = sequence.follow
    assert isinstance(generation, Generation)
    position = len(sequence.generated)
    top = top_of(following.whole([row]), generation.top) if generation.top else None
    event = Generated(token, following.logprob(row, token), top, None)
    if token in generation.end_ids:
        event.finish = "stop"
    elif position + 1 == generation.max_tokens:
        event.finish = "length"
    else:
        sequence.generated.append(token)
    return event
