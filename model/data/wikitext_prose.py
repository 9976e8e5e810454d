"""WikiText's training text as ordinary prose, to train on together with other prose."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from model.data.wikitext import TITLE, UNKNOWN, split, write


def rare_words(lines: Iterable[str], known: frozenset[str]) -> list[str]:
    """The words of ordinary writing that are not `known`, with repetitions."""
    return [word for line in lines for word in split(line) if word not in known]


def prose(lines: Iterable[str], fill: list[str], marker: str, seed: int = 0) -> Iterator[str]:
    """WikiText's lines as ordinary writing, blank ones left out, `marker` before every article.

    `<unk>` replaces words that are too rare for WikiText-2; here a random word of `fill` replaces
    it, so that a model learns how often rare words occur, and from `fill` what they look like.
    Raises ValueError if `fill` is empty.
    """
    if not fill:
        raise ValueError("there are no words to draw from that WikiText lacks")
    return _prose(lines, fill, marker, seed)


def _prose(lines: Iterable[str], fill: list[str], marker: str, seed: int) -> Iterator[str]:
    rng = np.random.default_rng(seed)
    for line in lines:
        words = line.split()
        if not words:
            continue
        if TITLE.match(line):
            yield marker
        drawn = iter(rng.integers(len(fill), size=words.count(UNKNOWN)))
        yield write([fill[next(drawn)] if word == UNKNOWN else word for word in words])[0]
