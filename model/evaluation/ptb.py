"""Word-level perplexity of a model of raw text on the Penn Treebank in Mikolov's form.

That form (Mikolov et al. 2010) is lower case without punctuation, a sentence a line, with words
split as in `do n't` and `company 's`, `<unk>` for words that are not among 10,000, and `N` for
numbers. The words are joined to ordinary writing by `model.wikitext.write`: `don't`, `company's`,
`$10`. It stays lower case and without punctuation, which nobody can restore.

`<unk>` and `N` name no word that was written, so a model of text cannot be asked for them. In the
text a word of the same kind stands for each, so that what is around it reads as English, and
neither is counted. All other words are counted, and the ends of lines. Published perplexities
count `<unk>` and `N`, of a closed vocabulary that holds them: they do not compare with these.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from model.architecture.causal import CausalModel
from model.core.measures import Totals
from model.core.tokenizer import Tokenizer
from model.data import text_files
from model.evaluation.scoring import check_tokenizer
from model.evaluation.wikitext import UNKNOWN, Written, word_logprobs, written

NUMBER = "N"
# With prose-10m, on 500 lines of the validation file, all common words tried gave much the same
# figure for the words around them (within 3 %), the letters `<unk>` one 19 % higher, N 8 % higher.
STAND_INS = {UNKNOWN: "something", NUMBER: "10"}


def read(lines: Iterable[str]) -> list[tuple[list[str], list[bool]]]:
    """Lines that are not blank as words to write, and which of them count.

    `\\/` and `\\*`, the treebank's way to write `/` and `*`, lose their backslash.
    """
    found = []
    for line in lines:
        words = line.split()
        if words:
            as_written = [STAND_INS.get(word, word.replace("\\", "")) for word in words]
            found.append((as_written, [word not in STAND_INS for word in words]))
    return found


def texts(lines: Iterable[str], *, alone: bool = False) -> list[Written]:
    """The file as one running text, a line break behind each line; or `alone`, a text a line.

    None when there is no line that is not blank.
    """
    found = read(lines)
    if alone:
        return [written([line]) for line in found]
    return [written(found)] if found else []


def evaluate(
    model: CausalModel, tokenizer: Tokenizer, file: Path, *, lines: bool = False
) -> Totals:
    """Log-probability and number of the counted words and line ends of a file.

    Each text begins with the start symbol: the whole file, or with `lines` each line. Tokens and
    bytes are not counted, since the text has stand-ins. Raises FileNotFoundError, ValueError.
    """
    check_tokenizer(model, tokenizer)
    total = Totals()
    found = texts(text_files.lines(file), alone=lines)
    if not found:
        raise ValueError(f"{file} holds no line")
    for text in found:
        scores = word_logprobs(model, tokenizer, text)
        total += Totals(
            logprob_sum=float(scores[text.counted].sum()), word_count=int(text.counted.sum())
        )
    return total
