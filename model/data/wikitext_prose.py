"""WikiText's training text as people write it, to learn from beside other prose."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from model.evaluation.wikitext import TITLE, UNKNOWN, split, write


def rare_words(lines: Iterable[str], known: frozenset[str]) -> list[str]:
    """Every word of ordinary writing that is not `known`, as often as it stands there."""
    return [word for line in lines for word in split(line) if word not in known]


def prose(lines: Iterable[str], fill: list[str], marker: str, seed: int = 0) -> Iterator[str]:
    """WikiText's lines as ordinary writing, blank ones left out, `marker` before every article.

    `<unk>` stands for words that are too rare for WikiText-2; a word of `fill`, drawn at random,
    stands for it here: so a model learns how often a rare word comes, and of its kind what `fill`
    tells. Raises ValueError when there is nothing to draw from.
    """
    if not fill:
        raise ValueError("there are no words to draw from that WikiText does not have")
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
