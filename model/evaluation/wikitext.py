"""Word-level perplexity of a model of raw text on WikiText, whose text is split into words.

The words are joined to ordinary writing, and the log-probability of every token is added to the
word with the token's first character that is not a space. So the sum over words equals the sum over
tokens, and models with different tokens can be compared. Words and the ends of lines are counted;
blank lines are left out. WikiText-103's word replaces an `<unk>` of WikiText-2; a word that is
`<unk>` there too remains in the text and is not counted.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.architecture.causal import CausalModel
from model.core.measures import Totals
from model.core.text_cache import with_cache
from model.core.tokenizer import Tokenizer
from model.data.wikitext import Article, WrittenText, read_articles, write_lines
from model.evaluation.scoring import check_tokenizer, logprobs


def word_logprobs(
    model: CausalModel, tokenizer: Tokenizer, text: WrittenText, *, cache: bool = False
) -> npt.NDArray[np.float64]:
    """Log-probability of every word, float64 [words], in nats.

    cache: see `model.core.text_cache`.
    """
    encoded = tokenizer.encode(text.text)
    ids = np.concatenate([[tokenizer.start_id], encoded.ids]).astype(np.int64)
    scores = logprobs(model, ids)
    if cache:
        scores = with_cache(ids, scores)
    letters = np.flatnonzero([c != " " for c in text.text])
    # the first letter of each token or after it: the line break at the end is one
    first = letters[np.searchsorted(letters, encoded.starts)]
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
    """Sums over a WikiText file; a text is an article, or with `lines` each line.

    A word outside `vocabulary` stays in the text and is not counted; `unknown_count` is the number
    of these. `byte_count` is that of the text as written. Raises FileNotFoundError, ValueError.
    """
    check_tokenizer(model, tokenizer)
    total = Totals()
    for article in read_articles(scored, full):
        for part in ([line] for line in article) if lines else [article]:
            known = part if vocabulary is None else _within(part, vocabulary)
            text = write_lines(known)
            scores = word_logprobs(model, tokenizer, text, cache=cache)
            total += Totals(
                float(scores[text.counted].sum()),
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
