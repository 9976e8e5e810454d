"""WikiText's training text as prose: what is written, and what stands for <unk>."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from model.cli.main import offline
from model.data.wikitext import prose, rare_words

LINES = [
    " \n",
    " = A title = \n",
    " \n",
    " The <unk> of 1 @,@ 500 <unk> @-@ eaters , it 's said . \n",
    " = = A section = = \n",
    " <unk> \n",
    " = Another = \n",
]


def test_articles_are_marked_blank_lines_left_out_and_words_joined() -> None:
    assert list(prose(LINES, ["Zyx"], "%%DOC")) == [
        "%%DOC",
        "= A title =",
        "The Zyx of 1,500 Zyx-eaters, it's said.",
        "== A section ==",
        "Zyx",
        "%%DOC",
        "= Another =",
    ]


def test_rare_words_are_those_that_are_not_known_as_often_as_they_stand() -> None:
    lines = ["The lion's den, a lion's den", "the Den"]
    assert rare_words(lines, frozenset(["the", "The", ",", "a", "'s"])) == [
        "lion",
        "den",
        "lion",
        "den",
        "Den",
    ]


def test_words_are_drawn_by_frequency_and_the_same_again_for_a_seed() -> None:
    lines = [" <unk> " * 3000 + "\n"]
    fill = ["often"] * 9 + ["seldom"]
    (text,) = prose(lines, fill, "%%DOC")
    words = text.split()
    assert len(words) == 3000
    assert 0.85 < words.count("often") / 3000 < 0.95
    assert [text] == list(prose(lines, fill, "%%DOC"))
    assert [text] != list(prose(lines, fill, "%%DOC", seed=1))


def test_nothing_to_draw_from_is_an_error() -> None:
    with pytest.raises(ValueError, match="no words to draw from"):
        list(prose(LINES, [], "%%DOC"))


def test_the_command_writes_a_file_that_prepare_reads(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("".join(LINES))
    (tmp_path / "fill.txt").write_text("%%DOC 1\nThe Quagga of it\n")
    arguments = ["wikitext-prose", str(tmp_path / "train.txt"), "--out", str(tmp_path / "o.txt")]
    done = CliRunner().invoke(offline, [*arguments, "--fill", str(tmp_path / "fill.txt")])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "o.txt").read_text()
    assert text.startswith("%%DOC\n= A title =\nThe Quagga of 1,500 Quagga-eaters")
    missing = CliRunner().invoke(offline, [*arguments, "--fill", str(tmp_path / "none.txt")])
    assert missing.exit_code == 1
    assert "none.txt" in missing.output
