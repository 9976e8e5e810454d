"""The Penn Treebank's words as ordinary writing, and which of them count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from app.cli.main import cli
from model.architecture.gcnn import GCNN
from model.cli.main import offline
from model.core.tokenizer import Tokenizer
from model.evaluation.ptb import evaluate, texts
from model.evaluation.scoring import logprobs

FILE = [
    " consumers do n't want the company 's $ N million <unk> \n",
    " \n",
    " viewers ' opinions of cities\\/abc rose N N \n",
]
WRITTEN = (
    "consumers don't want the company's $10 million something\n"
    "viewers' opinions of cities/abc rose 10 10\n"
)


def test_words_are_joined_and_stand_ins_do_not_count() -> None:
    (text,) = texts(FILE)
    assert text.text == WRITTEN
    counted = [
        WRITTEN[start:end]
        for start, end, counts in zip(
            text.starts, [*text.starts[1:], len(WRITTEN)], text.counted, strict=True
        )
        if counts
    ]
    assert [word.strip(" ") for word in counted] == [
        *("consumers", "do", "n't", "want", "the", "company", "'s", "$", "million", "\n"),
        *("viewers", "'", "opinions", "of", "cities/abc", "rose", "\n"),
    ]


def test_each_line_alone_is_a_text() -> None:
    found = texts(FILE, each_line=True)
    assert [text.text for text in found] == WRITTEN.splitlines(keepends=True)


def test_the_sum_is_over_the_tokens_of_what_counts(
    tiny_model: GCNN, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "ptb.txt"
    path.write_text("the company <unk>\nrose N\n")
    text = "the company something\nrose 10\n"
    encoded = tokenizer.encode(text)
    scores = logprobs(tiny_model, np.array([tokenizer.start_id, *encoded.ids], np.int64))
    left_out = [(11, 21), (26, 29)]  # " something", " 10"
    counted = [not any(begin <= start < end for begin, end in left_out) for start in encoded.starts]
    found = evaluate(tiny_model, tokenizer, path)
    assert found.word_count == 5
    assert found.logprob_sum == pytest.approx(float(scores[counted].sum()), abs=1e-4)


def test_lines_alone_have_no_history(
    tiny_model: GCNN, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    paths = [tmp_path / name for name in ("both", "one", "other")]
    for path, lines in zip(paths, ([0, 2], [0], [2]), strict=True):
        path.write_text("".join(FILE[number] for number in lines))
    both, one, other = (evaluate(tiny_model, tokenizer, path, lines=True) for path in paths)
    assert both.logprob_sum == pytest.approx((one + other).logprob_sum)
    assert both.word_count == (one + other).word_count
    running = evaluate(tiny_model, tokenizer, paths[0])
    assert running.word_count == both.word_count
    assert running.logprob_sum != pytest.approx(both.logprob_sum)


def test_a_file_without_lines_is_refused(
    tiny_model: GCNN, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "empty").write_text("\n \n")
    with pytest.raises(ValueError, match="no line"):
        evaluate(tiny_model, tokenizer, tmp_path / "empty")


def test_the_command_says_which_file_is_missing(tmp_path: Path) -> None:
    arguments = ["ptb", str(tmp_path / "best.pt"), str(tmp_path / "test.txt"), "--tokenizer", "t"]
    done = CliRunner().invoke(offline, arguments)
    assert done.exit_code == 1
    assert "best.pt" in done.stderr
    assert "ptb" not in {command.name for command in cli.registered_commands}
