"""Texts that share a beginning, as a tree of sequences in which each beginning is computed once."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from app.engine.sequence import Sequence
from model.core.graph import Indices

_WORTH_ROWS = 8
"""Rows that a branch must save; each branch is a piece more to plan and to deliver."""


@dataclass(frozen=True, slots=True)
class Text:
    """Tokens to score, the first `given` of them only history. ids: int64 [n]."""

    ids: Indices
    given: int


def grow(texts: Many[Text], top: int, halo: int) -> list[list[Sequence]]:
    """For each text the sequences that score it, the beginnings that it shares first.

    The scores of a text are those of its sequences, one after the other. A beginning of m tokens is
    a sequence of its own, m - 1 rows; whoever goes on from it reads its state. halo: R - 1, rows
    that a text without a state computes again.
    """
    order = sorted(
        range(len(texts)), key=lambda n: (texts[n].given, texts[n].ids.astype(">u4").tobytes())
    )
    common = [_common(texts[a], texts[b]) for a, b in pairwise(order)]
    paths: list[list[Sequence]] = [[] for _ in texts]
    # a range of `order`, and the path that all of it shares
    waiting: list[tuple[int, int, list[Sequence]]] = [(0, len(order), [])]
    while waiting:
        first, last, path = waiting.pop()
        if last - first == 1:
            text = texts[order[first]]
            paths[order[first]] = [*path, *_leaf(text, path, top)]
            continue
        shared = min(common[first : last - 1])
        given = texts[order[first]].given
        known, again = (path[-1].rows, 0) if path else (given - 1, min(halo, given - 1))
        saved = (last - first - 1) * (shared - 1 - known + again)
        if shared >= given and saved >= _WORTH_ROWS:
            path = [*path, _sequence(texts[order[first]].ids[:shared], given, path, top)]
        cuts = [n + 1 for n in range(first, last - 1) if common[n] == shared]
        waiting += [(a, b, path) for a, b in zip([first, *cuts], [*cuts, last], strict=True)]
    return paths


def _common(one: Text, other: Text) -> int:
    """Tokens that two texts begin with alike; none if one is scored where the other is history."""
    if one.given != other.given:
        return 0
    length = min(len(one.ids), len(other.ids))
    differing = np.flatnonzero(one.ids[:length] != other.ids[:length])
    return int(differing[0]) if len(differing) else length


def _leaf(text: Text, path: list[Sequence], top: int) -> list[Sequence]:
    """What is left of a text behind a path: nothing if it ends with it."""
    if path and len(path[-1].tokens) == len(text.ids):
        return []
    return [_sequence(text.ids, text.given, path, top)]


def _sequence(ids: Indices, given: int, path: list[Sequence], top: int) -> Sequence:
    parent = path[-1] if path else None
    known = given - 1 if parent is None else max(given - 1, parent.rows)
    return Sequence(ids, score_from=known, top=top, parent=parent)
