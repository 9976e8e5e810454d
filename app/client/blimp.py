"""BLiMP (Warstadt et al. 2020): is the grammatical sentence of a pair the more probable one?

A pair is right if the good sentence has the higher log-probability, summed over all its tokens
given the start symbol. The end symbol is not scored: it ends documents, not sentences, and both
sentences end alike. A tie is wrong. A paradigm's accuracy is the share of its pairs that are right;
the accuracy of a category, of a field and of all is the mean over their paradigms, which for the
full file (1,000 pairs in each of 67) equals the share of the pairs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from app.client.async_client import AsyncClient
from app.client.errors import ClientError
from app.client.files import Source
from app.client.scoring import Progress, read_lines, score
from model.core.config import complaint


class Pair(BaseModel, frozen=True):
    """A minimal pair: a line of the file."""

    good: str = Field(alias="sentence_good", min_length=1)
    bad: str = Field(alias="sentence_bad", min_length=1)
    paradigm: str = Field(alias="UID")
    category: str = Field(alias="linguistics_term")
    field: str


@dataclass(frozen=True, slots=True)
class Judged:
    """A pair with the log-probabilities of both sentences, in nats.

    unknown: whether a word of either is not in the model's vocabulary.
    """

    pair: Pair
    good_logprob: float
    bad_logprob: float
    unknown: bool

    @property
    def right(self) -> bool:
        return self.good_logprob > self.bad_logprob


def read(path: Path) -> list[Pair]:
    """Pairs of a JSONL file. Raises ClientError, which names a bad line."""
    pairs = []
    for number, line in read_lines(Source(str(path), json=True)):
        try:
            pairs.append(Pair.model_validate_json(line))
        except ValidationError as error:
            reason = complaint(error)
            raise ClientError(f"{path}, line {number}: not a pair of BLiMP: {reason}") from None
    if not pairs:
        raise ClientError(f"{path} has no pair")
    return pairs


async def judge(
    client: AsyncClient, pairs: Sequence[Pair], progress: Progress = lambda count: None
) -> list[Judged]:
    """Scores both sentences of every pair, in order. Raises ClientError."""
    sentences = (sentence for pair in pairs for sentence in (pair.good, pair.bad))
    judged = []
    async with aclosing(score(client, sentences, detail="totals")) as scores:
        for pair in pairs:
            good, bad = await anext(scores), await anext(scores)
            unknown = good.unknown_count + bad.unknown_count > 0
            judged.append(Judged(pair, good.logprob_sum, bad.logprob_sum, unknown))
            progress(1)
    return judged


def accuracy(judged: Iterable[Judged]) -> float:
    """The mean over paradigms of the share of pairs that are right, 0 to 1."""
    shares = [
        sum(one.right for one in group) / len(group)
        for group in _group(judged, lambda pair: pair.paradigm).values()
    ]
    return sum(shares) / len(shares)


def table(judged: Sequence[Judged]) -> str:
    """Accuracies in percent as Markdown: all, fields, categories, paradigms."""
    ties = sum(one.good_logprob == one.bad_logprob for one in judged)
    unknown = sum(one.unknown for one in judged)
    lines = ["| BLiMP | pairs | accuracy, % |", "| --- | --: | --: |", _row("**all**", judged)]
    by_field = _group(judged, lambda pair: pair.field.replace("/", "_"))
    lines += [_row(f"field: {name}", group) for name, group in by_field.items()]
    for category, group in _group(judged, lambda pair: pair.category).items():
        lines.append(_row(f"**{category}**", group))
        paradigms = _group(group, lambda pair: pair.paradigm)
        lines += [_row(name, members) for name, members in paradigms.items()]
    lines += ["", f"Ties, counted as wrong: {ties}. Pairs with unknown words: {unknown}."]
    return "\n".join(lines)


def _group(judged: Iterable[Judged], name: Callable[[Pair], str]) -> dict[str, list[Judged]]:
    groups: dict[str, list[Judged]] = defaultdict(list)
    for one in judged:
        groups[name(one.pair)].append(one)
    return dict(sorted(groups.items()))


def _row(name: str, judged: Sequence[Judged]) -> str:
    return f"| {name} | {len(judged):,} | {100 * accuracy(judged):.1f} |"
