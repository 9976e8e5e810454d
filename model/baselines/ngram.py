"""An interpolated n-gram model with modified Kneser-Ney smoothing, to compare with.

KenLM's `lmplz` estimates it (Heafield et al. 2013; the smoothing of Chen and Goodman 1999) and the
`kenlm` package scores with it. Serving needs neither, so they are only imported or called when
used. Text is split into WikiText's words and a line is a sentence: its history begins with `<s>`,
its end is `</s>`. Words that occur less than `least_count` times, and `<unk>`, are replaced by one
word, `<rare>`, in training and in histories, because KenLM reserves `<unk>`.

A model's folder has `model.bin`, for KenLM; `vocabulary.txt`, one word a line, most frequent first;
and `lmplz.log`, with the counts and the discounts.
"""

from __future__ import annotations

import importlib
import math
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol

from model.core.measures import Totals
from model.core.outputs import check_folder, naming
from model.data import text_files
from model.data.wikitext import UNKNOWN, read_articles, split

RARE = "<rare>"
_TOOLS = (
    "{} is not on the PATH; it comes with KenLM: `conda install -c conda-forge kenlm`, or build "
    "KenLM with cmake and Boost and put its bin folder on the PATH"
)
_PACKAGE = (
    "the package kenlm is missing; `pip install kenlm` compiles it, which takes cmake and g++"
)


class Scorer(Protocol):
    """The method of a `kenlm.Model` that is used."""

    def full_scores(
        self, sentence: str, bos: bool = True, eos: bool = True
    ) -> Iterable[tuple[float, int, bool]]:
        """For every word and the sentence's end: log10 of its probability, order used, unknown."""


@dataclass(frozen=True, slots=True)
class Trained:
    """Sizes of what `train` read and wrote; words do not include the line ends."""

    words: int
    lines: int
    vocabulary: int
    rare_words: int
    arpa_bytes: int
    binary_bytes: int


def vocabulary_of(counts: Counter[str], least_count: int) -> list[str]:
    """Words with at least `least_count` occurrences, most frequent first, then by alphabet."""
    kept = [(word, count) for word, count in counts.items() if count >= least_count]
    kept.sort(key=lambda pair: (-pair[1], pair[0]))
    return [word for word, _ in kept if word not in (UNKNOWN, RARE)]


def read_vocabulary(path: Path) -> frozenset[str]:
    """The words of a vocabulary.txt. Raises FileNotFoundError, ValueError if it is empty."""
    words = frozenset(text_files.lines(path)) - {""}
    if not words:
        raise ValueError(f"{path} has no words; a vocabulary is a text file with one word a line")
    return words


def sentence(words: Iterable[str], vocabulary: frozenset[str]) -> str:
    """A line for the model: words outside the vocabulary are replaced by `<rare>`."""
    return " ".join(word if word in vocabulary else RARE for word in words)


def train(
    files: Iterable[Path],
    folder: Path,
    *,
    marker: str | None = None,
    order: int = 5,
    least_count: int = 3,
    memory: str = "4G",
    temporary: Path | None = None,
) -> Trained:
    """Trains on text files and writes the model into `folder`.

    Lines that start with `marker` are left out. `memory` is for lmplz to sort in; `temporary` is
    a folder for the split text, the sorted n-grams and the ARPA file, which for order 5 has 20
    times the size of the text. Nothing is pruned. Raises FileNotFoundError, ValueError, OSError.
    """
    tools = tuple(_tool(name) for name in ("lmplz", "build_binary"))
    check_folder(folder, "model.bin")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=temporary or folder) as name:
        work = Path(name)
        counts, lines = _split_files(files, marker, work / "words.txt")
        words = counts.total()
        if not words:
            raise ValueError("the files have no text")
        listed = vocabulary_of(counts, least_count)
        rare = words - sum(counts[word] for word in listed)
        listing = "".join(f"{word}\n" for word in listed)
        (work / "vocabulary.txt").write_text(listing, encoding="utf-8", newline="\n")
        _estimate(tools, work, frozenset(listed), order, memory, folder / "lmplz.log")
        arpa_bytes = (work / "model.arpa").stat().st_size
        with naming(folder):  # both, or neither if anything failed
            shutil.move(work / "model.bin", partial := folder / "model.bin.partial")
            (folder / "model.bin").unlink(missing_ok=True)
            shutil.move(work / "vocabulary.txt", folder / "vocabulary.txt")
            partial.replace(folder / "model.bin")
    binary_bytes = (folder / "model.bin").stat().st_size
    return Trained(words, lines, len(listed), rare, arpa_bytes, binary_bytes)


def _estimate(
    tools: tuple[str, ...],
    work: Path,
    vocabulary: frozenset[str],
    order: int,
    memory: str,
    log: Path,
) -> None:
    """Writes model.arpa and model.bin in `work`, which has words.txt."""
    lmplz, build_binary = tools
    arpa, binary = str(work / "model.arpa"), str(work / "model.bin")
    with (work / "words.txt").open(encoding="utf-8", newline="\n") as text:
        # in a short text there may be no counts to compute a discount from: hence the fallback
        options = ["--order", str(order), "--memory", memory, "--temp_prefix", f"{work}/"]
        _feed(
            [lmplz, *options, "--discount_fallback", "--arpa", arpa],
            (sentence(line.split(), vocabulary) + "\n" for line in text),
            log,
        )
    options = ["-T", f"{work}/", "-S", memory]
    _feed([build_binary, *options, "trie", arpa, binary], (), work / "build_binary.log")


def load(folder: Path) -> tuple[Scorer, frozenset[str]]:
    """A trained model and its vocabulary. Raises FileNotFoundError, also without kenlm; OSError."""
    if not (folder / "model.bin").exists():
        raise FileNotFoundError(f"{folder} has no model.bin; make one: convlm ngram-train")
    try:
        kenlm = importlib.import_module("kenlm")
    except ImportError as error:
        raise FileNotFoundError(_PACKAGE) from error
    try:
        scorer: Scorer = kenlm.Model(str(folder / "model.bin"))
    except (OSError, RuntimeError) as error:  # its message has the lines of a C++ exception
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{folder / 'model.bin'} is not a model of KenLM: {reason}") from None
    return scorer, read_vocabulary(folder / "vocabulary.txt")


def word_logprobs(scorer: Scorer, words: list[str], vocabulary: frozenset[str]) -> list[float]:
    """Log-probabilities of a line's words and of its end, in nats: one more than words."""
    scores = scorer.full_scores(sentence(words, vocabulary), bos=True, eos=True)
    return [score * math.log(10) for score, _, _ in scores]


def evaluate(scorer: Scorer, vocabulary: frozenset[str], scored: Path, full: Path) -> Totals:
    """Sums over a WikiText file, counted as in `wikitext.evaluate` with this vocabulary.

    `unknown_count` is the number of words that are not counted because the vocabulary lacks them;
    tokens are words, and bytes are not counted. Raises FileNotFoundError, ValueError.
    """
    total = Totals()
    for article in read_articles(scored, full):
        for words, counts in article:
            total += _line_totals(scorer, vocabulary, words, counts)
    return total


def _line_totals(
    scorer: Scorer, vocabulary: frozenset[str], words: list[str], counts: list[bool]
) -> Totals:
    scores = word_logprobs(scorer, words, vocabulary)
    known = [
        counted and word in vocabulary for word, counted in zip(words, counts, strict=True)
    ] + [True]
    logprobs = [value for value, counted in zip(scores, known, strict=True) if counted]
    unknown = sum(counts) + 1 - len(logprobs)
    return Totals(sum(logprobs), len(logprobs), len(logprobs), 0, unknown)


def _split_files(files: Iterable[Path], marker: str | None, out: Path) -> tuple[Counter[str], int]:
    """Writes the words of all lines that are not blank; returns word counts and the lines."""
    counts: Counter[str] = Counter()
    lines = 0
    with naming(out), out.open("w", encoding="utf-8", newline="\n") as text:
        for line in chain.from_iterable(map(text_files.lines, files)):
            if marker is not None and line.startswith(marker):
                continue
            if words := split(line):
                counts.update(words)
                lines += 1
                text.write(" ".join(words) + "\n")
    return counts, lines


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise FileNotFoundError(_TOOLS.format(name))
    return path


def _feed(command: list[str], lines: Iterable[str], log: Path) -> None:
    """Runs a command with lines as input. Raises OSError with the end of its log if it fails."""
    with (
        log.open("w", encoding="utf-8") as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=errors,
            stderr=errors,
            text=True,
            encoding="utf-8",
        ) as running,
    ):
        assert running.stdin is not None
        with suppress(BrokenPipeError):  # it ended early; its status and its log say why
            running.stdin.writelines(lines)
        with suppress(BrokenPipeError):
            running.stdin.close()
    status = running.returncode
    if status:
        tail = log.read_text(encoding="utf-8").strip()[-500:]
        raise OSError(f"{Path(command[0]).name} failed with status {status}: {tail}")
