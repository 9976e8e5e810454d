"""WikiText's words as ordinary writing, and where their log-probabilities go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.architecture.gcnn import GCNN
from model.core.tokenizer import Tokenizer
from model.data.wikitext import articles, split, write, write_lines
from model.evaluation.scoring import logprobs
from model.evaluation.wikitext import evaluate, word_logprobs

SCORED = """ \n = Alice = \n \n Alice was <unk> tired @-@ out , " she said " ( once ) . \n
 = = A <unk> Book = = \n \n It 's 1 @,@ 500 <unk> long . \n \n = Rabbit = \n \n Oh dear ! \n"""
FULL = SCORED.replace("was <unk>", "was very").replace("500 <unk>", "500 pages")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("Alice was very tired @-@ out , she said .", "Alice was very tired-out, she said."),
        ('He said " no " and " yes " .', 'He said "no" and "yes".'),
        ("It 's 1 @,@ 500 @.@ 5 ( once ) ;", "It's 1,500.5 (once);"),
        ("the boys ' hats", "the boys' hats"),
        ("= = Career = =", "== Career =="),
        ("= Alice =", "= Alice ="),
    ],
)
def test_words_are_joined_as_people_write_them(words: str, text: str) -> None:
    assert write(words.split())[0] == text


@pytest.mark.parametrize("line", FULL.split("\n"))
def test_every_word_begins_where_it_is_said_to(line: str) -> None:
    words = line.split()
    text, starts = write(words)
    joiners = {"@-@": "-", "@,@": ",", "@.@": "."}
    for word, start in zip(words, starts, strict=True):
        assert text[start:].startswith(joiners.get(word, word))


def test_articles_are_cut_at_titles_and_count_what_either_file_knows() -> None:
    found = list(articles(SCORED.split("\n"), FULL.split("\n")))
    assert len(found) == 2
    first = [(" ".join(words), counts) for words, counts in found[0]]
    assert first[0] == ("= Alice =", [True] * 3)
    assert "was very tired" in first[1][0]
    assert all(first[1][1])
    assert first[2] == ("= = A <unk> Book = =", [True, True, True, False, True, True, True])


def test_files_that_do_not_align_are_refused() -> None:
    with pytest.raises(ValueError, match="line 2"):
        list(articles(["a b\n", "c d\n"], ["a b\n", "c e\n"]))


def test_the_words_log_probabilities_add_up_to_the_texts(
    tiny_model: GCNN, tokenizer: Tokenizer
) -> None:
    for article in articles(SCORED.split("\n"), FULL.split("\n")):
        text = write_lines(article)
        ids = np.concatenate([[tokenizer.start_id], tokenizer.encode(text.text).ids])
        total = logprobs(tiny_model, ids.astype(np.int64)).sum(dtype=np.float64)
        words = word_logprobs(tiny_model, tokenizer, text)
        assert words.sum() == pytest.approx(total, rel=1e-6)
        assert len(words) == len(text.starts) == len(text.counted)
        assert (words < 0).mean() > 0.9


@pytest.mark.parametrize("lines", [False, True])
def test_words_and_line_ends_are_counted_blank_lines_and_unknown_words_not(
    tiny_model: GCNN, tokenizer: Tokenizer, tmp_path: Path, lines: bool
) -> None:
    (tmp_path / "two").write_text(SCORED)
    (tmp_path / "full").write_text(FULL)
    found = evaluate(tiny_model, tokenizer, tmp_path / "two", tmp_path / "full", lines=lines)
    rows = [line.split() for line in FULL.split("\n") if line.strip()]
    assert found.word_count == sum(len(r) + 1 for r in rows) - 1  # one word is unknown to both
    assert found.logprob_sum < 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("== Life ==", "= = Life = ="),
        ('He said "no" (twice), you don\'t?', 'He said " no " ( twice ) , you don \'t ?'),
        ("a two-part episode for $1,500.50", "a two @-@ part episode for $ 1 @,@ 500 @.@ 50"),
        (
            "pre- and post-war; the boys' 1990's hats",
            "pre- and post @-@ war ; the boys ' 1990 's hats",
        ),
        ("Mr. J. Smith of the U.S. Army.", "Mr. J. Smith of the U.S. Army ."),
        ("No. 5, not no. 5. Really...", "No. 5 , not no . 5 . Really ..."),
        ("712–770, and/or 5%", "712 – 770 , and / or 5 %"),
        ("Du Fu ( Wade – Giles : <unk> )", "Du Fu ( Wade – Giles : <unk> )"),
        ("", ""),
    ],
)
def test_writing_is_split_as_wikitext_is(text: str, words: str) -> None:
    assert split(text) == words.split()


def test_splitting_gives_back_the_words_of_wikitexts_lines() -> None:
    line = (
        """He told the Times that he 'd " never seen 1 @,@ 200 fans " at St. James ' s two """
        """@-@ day show ( in 2008 ) : " It 's what you don 't expect , " said J. R. Smith ."""
    ).replace("James ' s", "James 's")
    assert split(write(line.split())[0]) == line.split()


WORDS = st.sampled_from(
    ["Alice", "was", "tired", "two-part", "1,500", "3.5", "don't", "it's", "U.S.", "Mr.", "(once)"]
)


@given(st.lists(st.tuples(WORDS, st.sampled_from(["", ",", ";", ":"])), min_size=1))
def test_joining_the_split_words_gives_the_line_back(words: list[tuple[str, str]]) -> None:
    line = " ".join(word + mark for word, mark in words) + " again."
    assert write(split(line))[0] == line


def test_words_outside_a_vocabulary_are_not_counted(
    tiny_model: GCNN, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "two").write_text(SCORED)
    (tmp_path / "full").write_text(FULL)
    files = tmp_path / "two", tmp_path / "full"
    whole = evaluate(tiny_model, tokenizer, *files)
    everything = frozenset(FULL.split())
    assert evaluate(tiny_model, tokenizer, *files, vocabulary=everything) == whole
    found = evaluate(tiny_model, tokenizer, *files, vocabulary=everything - {"tired", "said"})
    assert found.word_count == whole.word_count - found.unknown_count
    assert found.unknown_count == FULL.split().count("tired") + FULL.split().count("said")
    assert found.byte_count == whole.byte_count
    assert found.logprob_sum > whole.logprob_sum
