"""LAMBADA (Paperno et al. 2016): how well is the last word of a passage predicted?

A passage is scored as one text given the start symbol. The last word is the last run of characters
that are not white space, including an opening quotation mark; its tokens are those that overlap it
or the one space before it. Perplexity is exp(-mean over passages of the sum of these tokens'
log-probabilities). A passage is right if each of these tokens is the most probable one, that is, if
greedy decoding after the rest of the passage begins with them; what it would generate after the
word does not matter.

The file of JSON lines contains natural text, which is scored unchanged: the form to quote. The
plain form is lower case and split into words; it is joined to ordinary writing, stays lower case,
and gives other figures. There the last word is the last one of the line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from app.client.async_client import AsyncClient
from app.client.errors import ClientError
from app.client.files import Source
from app.client.scoring import Progress, read_lines, score
from app.wire.score import TextScore
from model.core.measures import Totals

_UNKNOWN = "<unk>"
_WRITTEN = {"``": '"', "''": '"', "`": "'", "-lrb-": "(", "-rrb-": ")", "-lsb-": "[", "-rsb-": "]"}
_NO_SPACE_BEFORE = re.compile(r"[,.;:!?%]+|''|'|'(?:s|re|ve|d|ll|m|t)|n't|-r[rs]b-")
_NO_SPACE_AFTER = frozenset({"``", "`", "-lrb-", "-lsb-", "$"})


@dataclass(frozen=True, slots=True)
class Passage:
    """A text, and where its last word begins; the word ends the text."""

    text: str
    word_start: int

    @property
    def tokens_from(self) -> int:
        """Its tokens end after this character, which is its first or the space before it."""
        return self.word_start - (self.text[: self.word_start].endswith(" "))


@dataclass(frozen=True, slots=True)
class Prediction:
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
    source = Source(str(path), advice="; lines of JSON are read from a file named .jsonl")
    passages = []
    for number, line in read_lines(source):
        try:
            passages.append(_natural(line) if source.json else _join(line))
        except ValueError as error:
            reason = "not an object with a `text`" if isinstance(error, ValidationError) else error
            raise ClientError(
                f"{path}, line {number}: not a passage of LAMBADA: {reason}"
            ) from None
    if not passages:
        raise ClientError(f"{path} has no passage")
    return passages


def _natural(line: str) -> Passage:
    text = _Line.model_validate_json(line).text.rstrip()
    words = text.split()
    if len(words) < 2:
        raise ValueError("it needs two words")
    return Passage(text, len(text) - len(words[-1]))


def _join(line: str) -> Passage:
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


async def predict(
    client: AsyncClient, passages: Sequence[Passage], progress: Progress = lambda count: None
) -> list[Prediction]:
    """The model's predictions of the last words, in order. Raises ClientError."""
    texts = (passage.text for passage in passages)
    predictions = []
    async with aclosing(score(client, texts, top_logprobs=1)) as scores:
        for passage in passages:
            predictions.append(_last_word(passage, await anext(scores)))
            progress(1)
    return predictions


def _last_word(passage: Passage, scored: TextScore) -> Prediction:
    if scored.token_ids is None or scored.offsets is None:
        raise ClientError("the server's scores lack the tokens")
    if scored.logprobs is None or scored.top_logprobs is None:
        raise ClientError("the server's scores lack the tokens' log-probabilities")
    ids, logprobs, tops = scored.token_ids, scored.logprobs, scored.top_logprobs
    total, right = 0.0, True
    for token, (_, end) in enumerate(scored.offsets):
        if end <= passage.tokens_from:
            continue
        logprob, top = logprobs[token], tops[token]
        if logprob is None or not top:
            raise ClientError("the server's scores lack a token's log-probability")
        total += logprob
        # to predict the symbol for unknown words is not to predict the word
        right &= top[0].token_id == ids[token] and top[0].token != _UNKNOWN
    return Prediction(total, right, scored.unknown_count > 0)


def perplexity(predictions: Sequence[Prediction]) -> float | None:
    """exp(-mean log-probability of the last words); None if it is beyond float64."""
    total = sum(one.logprob for one in predictions)
    return Totals(logprob_sum=total, word_count=len(predictions)).word_perplexity


def accuracy(predictions: Sequence[Prediction]) -> float:
    """The share of passages that are right, 0 to 1."""
    return sum(one.right for one in predictions) / len(predictions)


def table(predictions: Sequence[Prediction]) -> str:
    """Perplexity and accuracy as Markdown."""
    value = perplexity(predictions)
    shown = "too large" if value is None else f"{value:,.2f}"
    unknown = sum(one.unknown for one in predictions)
    return (
        "| LAMBADA | passages | last-word perplexity | last-word accuracy, % |\n"
        "| --- | --: | --: | --: |\n"
        f"| last word | {len(predictions):,} | {shown} | {100 * accuracy(predictions):.2f} |\n\n"
        f"Passages with unknown words: {unknown}."
    )
