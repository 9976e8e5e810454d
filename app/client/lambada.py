"""LAMBADA (Paperno et al. 2016): how well is the last word of a passage foreseen?

A passage is scored as one text given the start symbol. The last word is the last run of characters
that are not white space, an opening quotation mark included; its tokens are those that touch it
or the one space in front of it. Perplexity is exp(-mean over passages of the sum of these tokens'
log-probabilities). A passage is right if every one of these tokens is the most probable at its
place, which is when greedy decoding behind the passage begins with them; what would follow the
word is not asked.

The file of JSON lines holds natural text, which is scored as it stands: the form to quote. The
plain form is lower case and split into words; it is joined to ordinary writing, stays lower case,
and gives other figures. There the last word is the last one of the line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import httpx
from pydantic import BaseModel, ValidationError

from app.client.errors import ClientError
from app.client.files import Source
from app.client.scoring import Progress, read_lines, score, unheard
from app.wire.score import TextScore
from model.core.measures import Totals

_UNKNOWN = "<unk>"
_WRITTEN = {
    "``": '"',
    "''": '"',
    "`": "'",
    "-lrb-": "(",
    "-rrb-": ")",
    "-lsb-": "[",
    "-rsb-": "]",
}
_NO_SPACE_BEFORE = re.compile(r"[,.;:!?%]+|''|'|'(?:s|re|ve|d|ll|m|t)|n't|-r[rs]b-")
_NO_SPACE_AFTER = frozenset({"``", "`", "-lrb-", "-lsb-", "$"})


@dataclass(frozen=True, slots=True)
class Passage:
    """A text, and where its last word begins; the word ends the text."""

    text: str
    word_start: int

    @property
    def tokens_from(self) -> int:
        """The character behind which the last word's tokens end: its own first, or its space."""
        return self.word_start - (self.text[: self.word_start].endswith(" "))


@dataclass(frozen=True, slots=True)
class Foreseen:
    """The last word's log-probability in nats, and whether all its tokens were the likeliest.

    unknown: whether a word of the passage is not in the model's vocabulary.
    """

    logprob: float
    right: bool
    unknown: bool


class _Line(BaseModel):
    text: str


def read(path: Path) -> list[Passage]:
    """Passages of a file: JSON lines if its name says so, else plain, one passage a line.

    Raises ClientError, which names a bad line.
    """
    source = Source(str(path), otherwise="; lines of JSON are read from a file named .jsonl")
    passages = []
    for number, line in read_lines(source):
        try:
            passages.append(_natural(line) if source.json else _joined(line))
        except ValueError as error:
            reason = "not an object with a `text`" if isinstance(error, ValidationError) else error
            raise ClientError(f"{path}, line {number}: no passage of LAMBADA: {reason}") from None
    if not passages:
        raise ClientError(f"{path} holds no passage")
    return passages


def _natural(line: str) -> Passage:
    text = _Line.model_validate_json(line).text.rstrip()
    words = text.split()
    if len(words) < 2:
        raise ValueError("it needs two words")
    return Passage(text, len(text) - len(words[-1]))


def _joined(line: str) -> Passage:
    """A line of the plain form as ordinary writing."""
    *words, last = line.split()
    if not words:
        raise ValueError("it needs two words")
    text, tight = "", True
    for word in words:
        if not (tight or _NO_SPACE_BEFORE.fullmatch(word)):
            text += " "
        text += _WRITTEN.get(word, word)
        tight = word in _NO_SPACE_AFTER
    text += "" if tight else " "
    return Passage(text + last, len(text))


async def foresee(
    client: httpx.AsyncClient, passages: Sequence[Passage], progress: Progress = unheard
) -> list[Foreseen]:
    """What the model makes of each last word, in order. Raises ClientError."""
    texts = (passage.text for passage in passages)
    found = []
    async with aclosing(score(client, texts, top_logprobs=1, batch_texts=32)) as scores:
        for passage in passages:
            found.append(_last_word(passage, await anext(scores)))
            progress(1)
    return found


def _last_word(passage: Passage, scored: TextScore) -> Foreseen:
    if scored.token_ids is None or scored.offsets is None:
        raise ClientError("the server's scores lack the tokens")
    if scored.logprobs is None or scored.top_logprobs is None:
        raise ClientError("the server's scores lack the tokens' log-probabilities")
    ids, logprobs, tops = scored.token_ids, scored.logprobs, scored.top_logprobs
    places = [place for place, (_, end) in enumerate(scored.offsets) if end > passage.tokens_from]
    total, foreseen = 0.0, True
    for place in places:
        logprob, top = logprobs[place], tops[place]
        if logprob is None or not top:
            raise ClientError("the server's scores lack a token's log-probability")
        total += logprob
        # a word that is unknown to the model is not foreseen by foreseeing an unknown word
        foreseen &= top[0].token_id == ids[place] and top[0].token != _UNKNOWN
    return Foreseen(total, foreseen, scored.unknown_count > 0)


def perplexity(found: Sequence[Foreseen]) -> float | None:
    """exp(-mean log-probability of the last words); None when no float64 can hold it."""
    total = sum(one.logprob for one in found)
    return Totals(logprob_sum=total, word_count=len(found)).word_perplexity


def accuracy(found: Sequence[Foreseen]) -> float:
    """The share of passages that are right, 0 to 1."""
    return sum(one.right for one in found) / len(found)


def table(found: Sequence[Foreseen]) -> str:
    """Perplexity and accuracy as Markdown."""
    value = perplexity(found)
    unknown = sum(one.unknown for one in found)
    return "\n".join(
        [
            "| LAMBADA | passages | last-word perplexity | last-word accuracy, % |",
            "| --- | --: | --: | --: |",
            f"| last word | {len(found):,} | {'too large' if value is None else f'{value:,.2f}'} "
            f"| {100 * accuracy(found):.2f} |",
            "",
            f"Passages with unknown words: {unknown}.",
        ]
    )
