"""Texts that share prefixes, as a tree of sequences in which each prefix is computed once."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from app.engine.policy import POLICY
from app.engine.sequence import Sequence, TopWanted
from model.core.graph import Indices


@dataclass(frozen=True, slots=True)
class Text:
    """Tokens to score; the first `prefix_length` are only history. ids: int64 [n]."""

    ids: Indices
    prefix_length: int


def prefix_tree(texts: list[Text], top: TopWanted, halo: int) -> list[list[Sequence]]:
    """For each text the sequences that score it, the shared prefixes first.

    The scores of a text are those of its sequences, one after the other. A prefix of m tokens is a
    sequence of m - 1 rows, from whose state its children start. halo: R - 1, rows that a text
    without a state computes again.
    """
    order = sorted(
        range(len(texts)),
        key=lambda n: (texts[n].prefix_length, texts[n].ids.astype(">u4").tobytes()),
    )
    common = [_common(texts[a], texts[b]) for a, b in pairwise(order)]
    paths: list[list[Sequence]] = [[] for _ in texts]
    # a range of `order`, and the path that all its texts share
    waiting: list[tuple[int, int, list[Sequence]]] = [(0, len(order), [])]
    while waiting:
        first, last, path = waiting.pop()
        text = texts[order[first]]
        if last - first == 1:
            if not path or len(path[-1].tokens) < len(text.ids):  # else the text ends with the path
                path = [*path, _sequence(text, len(text.ids), path, top)]
            paths[order[first]] = path
            continue
        shared = min(common[first : last - 1])
        computed = path[-1].rows if path else text.prefix_length - 1
        halo_rows = 0 if path else min(halo, text.prefix_length - 1)
        saved = (last - first - 1) * (shared - 1 - computed + halo_rows)
        if shared >= text.prefix_length and saved >= POLICY.prefix_rows:
            path = [*path, _sequence(text, shared, path, top)]
        cuts = [n + 1 for n in range(first, last - 1) if common[n] == shared]
        waiting += [(a, b, path) for a, b in zip([first, *cuts], [*cuts, last], strict=True)]
    return paths


def _common(one: Text, other: Text) -> int:
    """Length of the common prefix of two texts; 0 if one is scored where the other is history."""
    if one.prefix_length != other.prefix_length:
        return 0
    length = min(len(one.ids), len(other.ids))
    differing = np.flatnonzero(one.ids[:length] != other.ids[:length])
    return int(differing[0]) if len(differing) else length


def _sequence(text: Text, stop: int, path: list[Sequence], top: TopWanted) -> Sequence:
    """A text's tokens up to `stop`, scored from the end of the path on."""
    parent = path[-1] if path else None
    score_from = text.prefix_length - 1
    if parent is not None:
        score_from = max(score_from, parent.rows)
    return Sequence(text.ids[:stop], score_from=score_from, top=top, parent=parent)
