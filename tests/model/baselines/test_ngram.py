"""The n-gram baseline: its vocabulary, what KenLM is given, and what counts."""

from __future__ import annotations

import lzma
import math
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.baselines import ngram
from model.baselines.ngram import RARE, evaluate, load, read_vocabulary, train, vocabulary_of

SCORED = " \n = Alice = \n \n Alice was <unk> tired , she <unk> . \n"
FULL = " \n = Alice = \n \n Alice was very tired , she <unk> . \n"
TEXT = """%%DOC\tid\tA title
== Down the hole ==
It's late; it's 1,500 steps.

It's late.
"""
# They stand in for KenLM's programs: the one keeps its text, the other copies the file.
LMPLZ = """#!/bin/sh
while [ "$1" != --arpa ]; do shift; done
cat > "$2"; echo "read it" >&2
"""
BUILD_BINARY = """#!/bin/sh
while [ "$1" != trie ]; do shift; done
cp "$2" "$3"
"""


class Tenths:
    """Gives every word a tenth and a line's end a hundredth; keeps the sentences."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def full_scores(
        self, sentence: str, bos: bool = True, eos: bool = True
    ) -> Iterator[tuple[float, int, bool]]:
        assert bos
        assert eos
        self.sentences.append(sentence)
        yield from ((-1.0, 1, False) for _ in sentence.split())
        yield (-2.0, 1, False)


def programs(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    folder.mkdir()
    for name, script in scripts.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_the_vocabulary_holds_words_seen_often_enough_most_frequent_first() -> None:
    counts = Counter({"the": 9, "b": 3, "a": 3, "once": 2, "<unk>": 7})
    assert vocabulary_of(counts, 3) == ["the", "a", "b"]
    assert vocabulary_of(counts, 1) == ["the", "a", "b", "once"]


def test_a_vocabulary_file_has_one_word_a_line(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("the\n=\né\n")
    assert read_vocabulary(tmp_path / "words.txt") == {"the", "=", "é"}
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="one word a line"):
        read_vocabulary(tmp_path / "empty.txt")


def test_known_words_and_line_ends_count_and_the_rest_only_stands_in_the_history(
    tmp_path: Path,
) -> None:
    (tmp_path / "two").write_text(SCORED)
    (tmp_path / "full").write_text(FULL)
    scorer = Tenths()
    vocabulary = frozenset({"=", "Alice", "was", "very", ",", "."})
    found = evaluate(scorer, vocabulary, tmp_path / "two", tmp_path / "full")
    assert scorer.sentences == ["= Alice =", f"Alice was very {RARE} , {RARE} {RARE} ."]
    assert found.word_count == found.token_count == 3 + 5 + 2
    assert found.unknown_count == 2  # tired, she: what is <unk> in both files counts as nothing
    assert found.logprob_sum == pytest.approx(-(8 + 2 * 2) * math.log(10))


def test_kenlm_is_given_wikitexts_words_with_rare_ones_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs(tmp_path / "bin", monkeypatch, lmplz=LMPLZ, build_binary=BUILD_BINARY)
    with lzma.open(tmp_path / "text.xz", "wt", encoding="utf-8") as file:
        file.write(TEXT)
    out = tmp_path / "model"
    made = train([tmp_path / "text.xz"], out, marker="%%DOC", least_count=2)
    assert (out / "model.bin").read_text().splitlines() == [
        f"= = {RARE} {RARE} {RARE} = =",
        f"It 's late {RARE} {RARE} 's {RARE} {RARE} {RARE} {RARE} .",
        "It 's late .",
    ]
    words = (out / "vocabulary.txt").read_text().split()
    assert words == ["=", "'s", ".", "It", "late"]
    assert read_vocabulary(out / "vocabulary.txt") == set(words)
    assert (made.words, made.lines, made.vocabulary, made.rare_words) == (22, 3, 5, 9)
    assert (out / "lmplz.log").read_text() == "read it\n"
    assert sorted(path.name for path in out.iterdir()) == [
        "lmplz.log",
        "model.bin",
        "vocabulary.txt",
    ]


def test_what_kenlm_says_when_it_fails_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = "#!/bin/sh\necho 'no space left' >&2\nexit 3\n"
    programs(tmp_path / "bin", monkeypatch, lmplz=failing, build_binary=BUILD_BINARY)
    (tmp_path / "text").write_text("a line\n" * 50_000)  # more than a pipe holds
    with pytest.raises(OSError, match="status 3: no space left"):
        train([tmp_path / "text"], tmp_path / "model")


def test_text_without_words_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs(tmp_path / "bin", monkeypatch, lmplz=LMPLZ, build_binary=BUILD_BINARY)
    (tmp_path / "text").write_text("%%DOC\n\n")
    with pytest.raises(ValueError, match="no text"):
        train([tmp_path / "text"], tmp_path / "model", marker="%%DOC")


def test_missing_tools_are_named_with_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"lmplz is not on the PATH.*conda install"):
        train([], tmp_path / "model")
    with pytest.raises(FileNotFoundError, match="convlm ngram-train"):
        load(tmp_path)
    (tmp_path / "model.bin").touch()
    monkeypatch.setitem(sys.modules, "kenlm", None)
    with pytest.raises(FileNotFoundError, match="pip install kenlm"):
        ngram.load(tmp_path)
