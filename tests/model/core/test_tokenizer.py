"""Tokenizers lose nothing, say where every token lies, and give the same whatever the slices."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from model.core import tokenizer as module
from model.core.tokenizer import END, START, UNKNOWN, Encoded, Tokenizer, by_frequency, train_words
from tests import texts

# words, runs and contractions as they meet at the edges of slices, and any Unicode between
PARTS = st.one_of(
    st.sampled_from(
        "the|don't|they're|'ll|'| |   |\n|\r\n|\t|3.14|1234567|...|\x00|na\u00efve|e\u0301"
        f"|\u6211\u4eec|\U0001f642|\u0645\u0631|\u0301\u0301|\u00a0|{' ' * 40}|{'a' * 70}"
        f"|{'!' * 40}|{START}|{END}|{UNKNOWN}".split("|")
    ),
    st.text(max_size=6),
)
TEXT = st.lists(PARTS, max_size=12).map("".join)
SLICE = st.integers(1, 50)


@pytest.fixture(scope="session")
def words() -> Tokenizer:
    """Whole words, the 60 commonest."""
    return train_words([line for text in texts.ALL for line in text.split("\n")] + ["a\nb"], 60)


def sliced(tokenizer: Tokenizer, text: str, size: int, limit: int | None = None) -> Encoded:
    """The encoding in slices of `size` characters."""
    with patch.object(module, "SLICE_CHARACTERS", size):
        return tokenizer.encode(text, limit)


def assert_equal(one: Encoded, two: Encoded) -> None:
    """Every list alike."""
    for name in ("ids", "starts", "ends", "cuts"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


@given(TEXT)
@example("".join(chr(c) for c in [*range(0xD7F0, 0xD800), *range(0xE000, 0xE010), 0x10FFFF]))
def test_any_text_comes_back_from_its_tokens(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids.tolist()
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.special_ids)


@given(TEXT)
def test_every_token_lies_where_its_bytes_lie(tokenizer: Tokenizer, text: str) -> None:
    encoded = tokenizer.encode(text)
    begin = 0
    for token, start, end, cut in zip(
        encoded.ids, encoded.starts, encoded.ends, encoded.cuts, strict=True
    ):
        raw = tokenizer.token_bytes[token]
        stop = begin + len(raw)
        assert text.encode()[begin:stop] == raw
        # the characters whose bytes overlap the token's
        before = [len(text[:n].encode()) for n in range(len(text) + 1)]
        touched = [n for n in range(len(text)) if before[n] < stop and before[n + 1] > begin]
        assert (start, end) == (touched[0], touched[-1] + 1)
        assert cut == max(n for n in range(len(text) + 1) if before[n] <= stop)
        begin = stop
    assert begin == len(text.encode())


@given(TEXT)
def test_pieces_between_cuts_join_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    cuts = [0, *tokenizer.encode(text).cuts.tolist()]
    assert "".join(text[a:b] for a, b in pairwise(cuts)) == text


@settings(max_examples=200)
@given(TEXT, SLICE)
@example("they'll" * 20, 6)
@example(" " * 200 + "x", 33)
@example("\u0301" * 100 + "'r", 10)
@example("a" * 1000, 1)
def test_slices_of_any_size_give_the_same_tokens(
    tokenizer: Tokenizer, text: str, size: int
) -> None:
    assert_equal(sliced(tokenizer, text, size), tokenizer.encode(text))


@settings(max_examples=200)
@given(TEXT, SLICE)
@example("word " * 50, 3)
@example(" " * 100, 7)
@example("x" * 100 + "\n\n" + " " * 30 + "y", 4)
def test_slices_of_any_size_give_the_same_words(words: Tokenizer, text: str, size: int) -> None:
    assert_equal(sliced(words, text, size), words.encode(text))


@given(st.lists(TEXT, max_size=5), SLICE)
def test_many_texts_are_encoded_as_each_alone(
    tokenizer: Tokenizer, words: Tokenizer, several: list[str], size: int
) -> None:
    for each in (tokenizer, words):
        alone = [each.encode(text) for text in several]
        with patch.object(module, "SLICE_CHARACTERS", size):
            together = each.encode_many(several)
        for one, two in zip(alone, together, strict=True):
            assert_equal(one, two)


@given(TEXT, SLICE, st.integers(0, 40))
def test_a_limit_gives_the_beginning_of_the_tokens(
    tokenizer: Tokenizer, text: str, size: int, limit: int
) -> None:
    whole, part = tokenizer.encode(text), sliced(tokenizer, text, size, limit)
    count = len(part.ids)
    assert count > limit or count == len(whole.ids)
    np.testing.assert_array_equal(part.ids, whole.ids[:count])
    np.testing.assert_array_equal(part.cuts, whole.cuts[:count])


@pytest.mark.parametrize("symbol", [START, END, UNKNOWN])
def test_a_symbol_in_a_text_is_no_word(symbol: str) -> None:
    lines = [f"a b {symbol} a b", f"{symbol} c", f"a{symbol} {symbol}"]
    words = train_words(lines, 60)
    assert words.special_ids == (0, 1, 2)
    assert words.size == 3 + len({"a", "b", "c", f"a{symbol}"})
    ids = words.encode(f"a {symbol} {symbol}").ids
    assert list(ids[1:]) == [words.unknown_id] * 2
    assert f"a{symbol}".encode() in words.decode_bytes(words.encode(f"a{symbol}").ids)


def test_a_tokenizer_whose_ids_have_holes_is_refused(words: Tokenizer) -> None:
    facts = json.loads(words.backend.to_str())
    facts["model"]["vocab"]["a"] = 999
    with pytest.raises(ValueError, match="none with the id"):
        Tokenizer(Backend.from_str(json.dumps(facts)))


@given(TEXT)
@example("a\x1cb\x85c\u2028d")
def test_words_are_known_or_unknown_and_lie_where_they_stand(words: Tokenizer, text: str) -> None:
    encoded = words.encode(text)
    vocabulary = words.backend.get_vocab()
    for token, start, end, cut in zip(
        encoded.ids, encoded.starts, encoded.ends, encoded.cuts, strict=True
    ):
        word = text[start:end]
        known = word in vocabulary and word not in (START, END)
        assert token == (vocabulary[word] if known else words.unknown_id)
        assert cut == end
    found = [text[a:b] for a, b in zip(encoded.starts, encoded.ends, strict=True)]
    # Unicode's white space, to which Python adds four separators
    spaced = "".join(" " if c.isspace() and c not in "\x1c\x1d\x1e\x1f" else c for c in text)
    assert [word for word in found if word != "\n"] == [w for w in spaced.split(" ") if w]
    assert found.count("\n") == text.count("\n")


def test_a_word_that_is_not_in_the_vocabulary_is_unknown(words: Tokenizer) -> None:
    ids = words.encode("the zyzzyva the").ids.tolist()
    assert ids[1] == words.unknown_id
    assert ids[0] == ids[2] != words.unknown_id
    assert words.decode(ids) == " the <unk> the"


def test_special_symbols_in_a_text_are_ordinary_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(f"a{START}b{END}{END} c").ids.tolist()
    assert not set(ids) & set(tokenizer.special_ids)
    assert tokenizer.decode(ids) == f"a{START}b{END}{END} c"


def test_special_symbols_among_words_are_unknown_words(words: Tokenizer) -> None:
    assert words.encode(f"{START} {END} {UNKNOWN}").ids.tolist() == [words.unknown_id] * 3


def test_special_symbols_stand_for_no_bytes(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([tokenizer.start_id, tokenizer.end_id]) == ""


def test_a_word_of_100000_letters_is_encoded_like_any_other(
    tokenizer: Tokenizer, words: Tokenizer
) -> None:
    text = "z" * 100_000
    encoded = tokenizer.encode(text)
    assert tokenizer.decode(encoded.ids) == text
    assert encoded.cuts[-1] == len(text)
    word = words.encode(f"the {text} the")
    assert word.ids[1] == words.unknown_id
    assert word.starts.tolist() == [0, 4, 100_005]


def test_others_run_while_a_long_text_is_encoded(tokenizer: Tokenizer) -> None:
    """A server answers others meanwhile: a slice does not keep the interpreter to itself."""
    text = texts.ALICE * (20 * module.SLICE_CHARACTERS // len(texts.ALICE))
    turns = 0
    with ThreadPoolExecutor(1) as pool:
        encoded = pool.submit(tokenizer.encode, text)
        while not encoded.done():
            time.sleep(1e-4)
            turns += 1
    assert turns > 10 * len(text) // module.SLICE_CHARACTERS


@pytest.mark.parametrize("text", [" ", " " * 70_000, "\n" * 70_000, "\u00a0\u2003\t" * 30_000])
def test_white_space_alone_is_a_text(tokenizer: Tokenizer, words: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert len(words.encode(text).ids) == text.count("\n")


def test_an_empty_text_has_no_tokens(tokenizer: Tokenizer, words: Tokenizer) -> None:
    assert len(tokenizer.encode("").ids) == len(words.encode("").ids) == 0
    assert tokenizer.encode_many([]) == []


@pytest.mark.parametrize("kind", ["bpe", "word"])
def test_a_saved_tokenizer_encodes_as_before(
    tokenizer: Tokenizer, words: Tokenizer, tmp_path: Path, kind: str
) -> None:
    made = tokenizer if kind == "bpe" else words
    made.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (loaded.kind, loaded.size, loaded.special_ids) == (kind, made.size, made.special_ids)
    for text in (*texts.ALL, f"{START} {END}"):
        assert_equal(loaded.encode(text), made.encode(text))


@pytest.mark.parametrize("content", ["", "{}", "no json", '{"model": {"type": "BPE"}}'])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match="tokenizer"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_tokens_numbered_by_frequency_are_the_same_tokens(tokenizer: Tokenizer) -> None:
    lines = [line for text in texts.ALL for line in text.split("\n")]
    ranked = by_frequency(tokenizer, lines)
    assert ranked.special_ids == tokenizer.special_ids
    counts = np.zeros(ranked.size, int)
    for line in lines:
        one, other = tokenizer.encode(line), ranked.encode(line)
        assert [tokenizer.token_bytes[i] for i in one.ids] == [
            ranked.token_bytes[i] for i in other.ids
        ]
        counts += np.bincount(other.ids, minlength=ranked.size)
    falling = counts[len(ranked.special_ids) :]
    assert (np.diff(falling) <= 0).all()
