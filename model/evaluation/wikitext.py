"""Word-level perplexity of a model of raw text on WikiText, whose text is split into words.

The words are joined to ordinary writing, each with its place, and the log-probability of every
token goes to the word of its first character that is no space. So the sum over words is the sum
over tokens, and models with other tokens compare. Counted are the words and the ends of lines
that are not blank (blank lines are left out of the text and of the count). Where WikiText-2 has
`<unk>`, WikiText-103's word stands; a word that is `<unk>` there too stays in the text and is not
counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.architecture.causal import CausalModel
from model.core.measures import Totals
from model.core.text_cache import with_cache
from model.core.tokenizer import Tokenizer
from model.data import text_files
from model.evaluation.scoring import check_tokenizer, logprobs

UNKNOWN = "<unk>"
TITLE = re.compile(r"^ = [^=]+ = $")
"""The line that opens an article: the title between single signs."""
_NO_SPACE_BEFORE = re.compile(r"^(?:[,.;:!?)\]}%]|'(?:s|re|ve|d|ll|m|t)|n't)$")
_NO_SPACE_AFTER = frozenset("([{$£€#")
_JOINERS = {"@-@": "-", "@,@": ",", "@.@": "."}
# What follows is how WikiText was split: the rules and the abbreviations of Moses' tokenizer.perl
# for English, and numbers split at their commas and points.
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
    | [^\W_]+(?:\.(?=\s[a-z])|-(?=[\s,]))?  # a point in front of a small letter ends no sentence
    | (?<=[^\W\d_])'[^\W_]+ | (?<=\S)'s(?!\w)  # clitics
    | \.\.+ | -+[^\W_]* | \S
    """,
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Written:
    """A text and where each word begins in it; `counted` says which words are."""

    text: str
    starts: npt.NDArray[np.int64]
    counted: npt.NDArray[np.bool_]


def write(words: list[str]) -> tuple[str, list[int]]:
    """A line's words as ordinary writing, and where each begins.

    Joins `@-@`, closes up punctuation, brackets, clitics and quotation marks.
    """
    text, starts = "", []
    glued, quoted = True, False
    for place, word in enumerate(words):
        joiner = _JOINERS.get(word)
        heading = word == "=" and place + 1 < len(words)
        tight = glued or joiner is not None or _NO_SPACE_BEFORE.match(word) is not None
        if word == '"' and quoted:
            tight = True
        if word == "'" and text.endswith("s"):
            tight = True
        if word == "=" and text.endswith("="):
            tight = True
        text += "" if tight else " "
        starts.append(len(text))
        text += joiner or word
        glued = joiner is not None or word in _NO_SPACE_AFTER
        if word == '"':
            quoted = not quoted
            glued = quoted
        if heading and words[place + 1] == "=":
            glued = True
    return text, starts


def split(line: str) -> list[str]:
    """A line of ordinary writing as WikiText's words; the inverse of `write`.

    Punctuation and clitics stand apart, numbers and compounds fall apart at a joiner: "It's 1,500"
    is `It 's 1 @,@ 500`.
    """
    found: list[str] = _SPLIT.findall(_JOINED.sub(r" @\g<0>@ ", line))
    return found


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
        raise ValueError(f"{scored} holds no line")


class UnalignedError(ValueError):
    """Two files do not hold the same words."""


def articles(scored: Iterable[str], full: Iterable[str]) -> Iterator[Article]:
    """Articles, cut at their titles. Raises UnalignedError where the two do not align."""
    article: Article = []
    for number, (line, whole) in enumerate(zip_longest(scored, full), 1):
        if line is None or whole is None:
            raise UnalignedError(f"line {number}: one of the two files ends before it")
        words, others = line.split(), whole.split()
        if len(words) != len(others) or any(
            a not in (b, UNKNOWN) for a, b in zip(words, others, strict=True)
        ):
            raise UnalignedError(f"line {number}: the two files do not hold the same words")
        if TITLE.match(line) and article:
            yield article
            article = []
        if words:
            article.append((others, [word != UNKNOWN for word in others]))
    if article:
        yield article


def written(lines: Iterable[tuple[list[str], list[bool]]]) -> Written:
    """Lines as one text, a line break behind each; the breaks count as words."""
    text, starts, counted = "", [], []
    for words, counts in lines:
        line, places = write(words)
        starts += [len(text) + place for place in places] + [len(text) + len(line)]
        counted += [*counts, True]
        text += line + "\n"
    return Written(text, np.array(starts, np.int64), np.array(counted))


def word_logprobs(
    model: CausalModel, tokenizer: Tokenizer, text: Written, *, cache: bool = False
) -> npt.NDArray[np.float64]:
    """Log-probability of every word, float64 [words], in nats.

    cache: see `model.core.text_cache`.
    """
    encoded = tokenizer.encode(text.text)
    ids = np.concatenate([[tokenizer.start_id], encoded.ids]).astype(np.int64)
    scores = logprobs(model, ids)
    if cache:
        scores = with_cache(ids, scores)
    letters = np.array([c != " " for c in text.text])
    following = np.flatnonzero(letters)  # every text ends with a line break, so there is one
    first = following[np.searchsorted(following, encoded.starts)]
    words = np.searchsorted(text.starts, first, side="right") - 1
    sums = np.bincount(words, weights=scores, minlength=len(text.starts))
    return sums.astype(np.float64)


def evaluate(
    model: CausalModel,
    tokenizer: Tokenizer,
    scored: Path,
    full: Path,
    *,
    lines: bool = False,
    vocabulary: frozenset[str] | None = None,
    cache: bool = False,
) -> Totals:
    """Sums over a WikiText file; each article whole, or with `lines` each line on its own.

    A word outside `vocabulary` stays in the text and is not counted; `unknown_count` says how many
    there are. `byte_count` is of the writing. Raises FileNotFoundError, ValueError.
    """
    check_tokenizer(model, tokenizer)
    total = Totals()
    for article in read_articles(scored, full):
        for part in ([line] for line in article) if lines else [article]:
            known = part if vocabulary is None else _within(part, vocabulary)
            text = written(known)
            found = word_logprobs(model, tokenizer, text, cache=cache)
            total += Totals(
                float(found[text.counted].sum()),
                len(tokenizer.encode(text.text).ids),
                int(text.counted.sum()),
                len(text.text.encode()),
                sum(sum(counts) for _, counts in part) + len(part) - int(text.counted.sum()),
            )
    return total


def _within(lines: Article, vocabulary: frozenset[str]) -> Article:
    return [
        (words, [count and word in vocabulary for word, count in zip(words, counts, strict=True)])
        for words, counts in lines
    ]
