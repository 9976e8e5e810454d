"""WikiText's words as ordinary writing, and back; its articles; its training text as prose."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.data import text_files

UNKNOWN = "<unk>"
TITLE = re.compile(r"^ = [^=]+ = $")
"""The line that opens an article: the title between single equals signs."""
_NO_SPACE_BEFORE = re.compile(r"^(?:[,.;:!?)\]}%]|'(?:s|re|ve|d|ll|m|t)|n't)$")
_NO_SPACE_AFTER = frozenset("([{$£€#")
_JOINERS = {"@-@": "-", "@,@": ",", "@.@": "."}
# How WikiText was split: with the rules and abbreviations of Moses' tokenizer.perl for English, and
# numbers at their commas and points.
_JOINED = re.compile(r"(?<=[^\W_])-(?=[^\W_])|(?<=\d)[,.](?=\d)")
_ABBREVIATIONS = (
    "Adj|Adm|Adv|Asst|Bart|Bldg|Brig|Bros|Capt|Cmdr|Col|Comdr|Con|Corp|Cpl|DR|Dr|Drs|Ens|Gen|Gov|"
    "Hon|Hr|Hosp|Insp|Lt|MM|MR|MRS|MS|Maj|Messrs|Mlle|Mme|Mr|Mrs|Ms|Msgr|Op|Ord|Pfc|Ph|Prof|Pvt|"
    "Rep|Reps|Res|Rev|Rt|Sen|Sens|Sfc|Sgt|Sr|St|Supt|Surg|vs|v|rev|[A-Z]"
)
_SPLIT = re.compile(
    rf"""
    <unk> | @[-,.]@
    | (?<![^\W_])(?:{_ABBREVIATIONS})\.(?![.\w])
    | (?<![^\W_])(?:No|Nos|Art|Nr|pp)\.(?=\s\d)
    | [^\W_]+(?:\.[^\W_]+)+(?:\.(?!\.))?  # e.g. U.S.
    | [^\W_]+(?:\.(?=\s[a-z])|-(?=[\s,]))?  # a point before a small letter ends no sentence
    | (?<=[^\W\d_])'[^\W_]+ | (?<=\S)'s(?!\w)  # clitics
    | \.\.+ | -+[^\W_]* | \S
    """,
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class WrittenText:
    """A text, the position of each of its words, and which words are counted."""

    text: str
    starts: npt.NDArray[np.int64]
    counted: npt.NDArray[np.bool_]


def write(words: list[str]) -> tuple[str, list[int]]:
    """A line's words as ordinary writing, and the position of each.

    Joins `@-@` and removes spaces at punctuation, brackets, clitics and quotation marks.
    """
    text, starts = "", []
    glued, quoted = True, False
    for index, word in enumerate(words):
        joiner = _JOINERS.get(word)
        tight = glued or joiner is not None or _NO_SPACE_BEFORE.match(word) is not None
        tight |= word == '"' and quoted
        tight |= (word == "'" and text.endswith("s")) or (word == "=" and text.endswith("="))
        text += "" if tight else " "
        starts.append(len(text))
        text += joiner or word
        glued = joiner is not None or word in _NO_SPACE_AFTER
        if word == '"':
            quoted = not quoted
            glued = quoted
        glued |= words[index : index + 2] == ["=", "="]
    return text, starts


def split(line: str) -> list[str]:
    """A line of ordinary writing as WikiText's words; the inverse of `write`.

    Punctuation and clitics become words, numbers and compounds are split at a joiner: "It's 1,500"
    becomes `It 's 1 @,@ 500`.
    """
    words: list[str] = _SPLIT.findall(_JOINED.sub(r" @\g<0>@ ", line))
    return words


Article = list[tuple[list[str], list[bool]]]
"""Lines, each as its words and which of them count."""


def read_articles(scored: Path, full: Path) -> Iterator[Article]:
    """The articles of two files. Raises OSError, ValueError, which name them."""
    empty = True
    try:
        for article in articles(text_files.lines(scored), text_files.lines(full)):
            empty = False
            yield article
    except UnalignedError as error:
        raise ValueError(f"{scored} and {full}: {error}") from None
    if empty:
        raise ValueError(f"{scored} has no lines")


class UnalignedError(ValueError):
    """Two files do not have the same words."""


def articles(scored: Iterable[str], full: Iterable[str]) -> Iterator[Article]:
    """Articles, cut at their titles. Raises UnalignedError if the two files do not align."""
    article: Article = []
    for number, (line, full_line) in enumerate(zip_longest(scored, full), 1):
        if line is None or full_line is None:
            raise UnalignedError(f"line {number}: one of the two files ends before it")
        words, others = line.split(), full_line.split()
        if len(words) != len(others) or any(
            a not in (b, UNKNOWN) for a, b in zip(words, others, strict=True)
        ):
            raise UnalignedError(f"line {number}: the two files do not have the same words")
        if TITLE.match(line) and article:
            yield article
            article = []
        if words:
            article.append((others, [word != UNKNOWN for word in others]))
    if article:
        yield article


def write_lines(lines: Iterable[tuple[list[str], list[bool]]]) -> WrittenText:
    """Lines as one text, with a line break after each; the breaks count as words."""
    text, starts, counted = "", [], []
    for words, counts in lines:
        line, offsets = write(words)
        starts += [len(text) + offset for offset in offsets] + [len(text) + len(line)]
        counted += [*counts, True]
        text += line + "\n"
    return WrittenText(text, np.array(starts, np.int64), np.array(counted))


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
    rng = np.random.default_rng(seed)
    for line in lines:
        words = line.split()
        if not words:
            continue
        if TITLE.match(line):
            yield marker
        drawn = iter(rng.integers(len(fill), size=words.count(UNKNOWN)))
        yield write([fill[next(drawn)] if word == UNKNOWN else word for word in words])[0]
