"""Word-level perplexity of a model of raw text on the Penn Treebank in Mikolov's form.

That form (Mikolov et al. 2010) is lower case without punctuation, a sentence a line, with words
split as in `do n't` and `company 's`, `<unk>` for words outside a vocabulary of 10,000, and `N` for
numbers. `model.data.wikitext.write` joins the words to ordinary writing: `don't`,
`company's`, `$10`. Case and punctuation cannot be restored.

`<unk>` and `N` are not words of the original text, so a model of text cannot predict them. A word
of the same kind replaces each, so that the words around it read as English, and it is not counted.
All other words are counted, and the ends of lines. Published perplexities count `<unk>` and `N` as
words of a closed vocabulary: they cannot be compared with these.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from model.architecture.causal import CausalModel
from model.core.measures import Totals
from model.core.tokenizer import Tokenizer
from model.data import text_files
from model.data.wikitext import UNKNOWN, WrittenText, write_lines
from model.evaluation.scoring import check_tokenizer
from model.evaluation.wikitext import word_logprobs

NUMBER = "N"
# With prose-10m, on 500 lines of the validation file, all common words gave nearly the same
# perplexity of the other words (within 3 %); the letters `<unk>` gave 19 % more, N 8 % more.
_REPLACEMENTS = {UNKNOWN: "something", NUMBER: "10"}


def read(lines: Iterable[str]) -> list[tuple[list[str], list[bool]]]:
    """The words to write of lines that are not blank, and which of them count.

    `\\/` and `\\*`, which the treebank writes for `/` and `*`, lose their backslash.
    """
    marked = []
    for line in lines:
        words = line.split()
        if words:
            as_written = [_REPLACEMENTS.get(word, word.replace("\\", "")) for word in words]
            marked.append((as_written, [word not in _REPLACEMENTS for word in words]))
    return marked


def texts(lines: Iterable[str], *, each_line: bool = False) -> list[WrittenText]:
    """The file as one text with a line break after each line; with `each_line` a text of each.

    An empty list if all lines are blank.
    """
    marked = read(lines)
    if each_line:
        return [write_lines([line]) for line in marked]
    return [write_lines(marked)] if marked else []


def evaluate(
    model: CausalModel, tokenizer: Tokenizer, file: Path, *, lines: bool = False
) -> Totals:
    """Log-probability and number of the counted words and line ends of a file.

    A text, which is the file or with `lines` each line, begins with the start symbol. Tokens and
    bytes are not counted, since some words are replaced. Raises FileNotFoundError, ValueError.
    """
    check_tokenizer(model, tokenizer)
    total = Totals()
    to_score = texts(text_files.lines(file), each_line=lines)
    if not to_score:
        raise ValueError(f"{file} has no lines")
    for text in to_score:
        scores = word_logprobs(model, tokenizer, text)
        total += Totals(
            logprob_sum=float(scores[text.counted].sum()), word_count=int(text.counted.sum())
        )
    return total
