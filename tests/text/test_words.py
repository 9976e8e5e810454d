"""Words and their tokens, against plain loops over the text."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.text.tokens import read_tokens
from app.text.words import words_of
from model.core.tokenizer import Encoded, Tokenizer, train_words
from tests import texts

LETTERS = st.text(
    st.one_of(
        st.sampled_from("ab \n\r\t\u00a0\u3000\x1c\u200b\u0301é我🙂"), st.characters(codec="utf-8")
    )
)


def test_white_space_is_what_python_takes_for_it() -> None:
    every = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    nothing = np.zeros(0, np.int32)
    found = words_of(every, Encoded(nothing, nothing, nothing, nothing))
    runs = [match.span() for match in re.finditer(r"\S+", every)]
    assert list(zip(found.starts.tolist(), found.ends.tolist(), strict=True)) == runs


@given(text=LETTERS)
def test_each_token_belongs_to_the_word_of_its_first_letter(
    tokenizer: Tokenizer, text: str
) -> None:
    encoded = tokenizer.encode(text)
    found = words_of(text, encoded)
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    assert list(zip(found.starts.tolist(), found.ends.tolist(), strict=True)) == spans
    logprobs = -np.arange(1, len(encoded.ids) + 1, dtype=np.float32)
    expected = [0.0] * len(spans)
    for start, logprob in zip(encoded.starts.tolist(), logprobs.tolist(), strict=True):
        letter = next((n for n in range(start, len(text)) if not text[n].isspace()), None)
        if spans:
            holds = [w for w, (a, b) in enumerate(spans) if letter is not None and a <= letter < b]
            expected[holds[0] if holds else -1] -= logprob
    surprisals = found.surprisals(logprobs)
    for word, (first, last) in enumerate(pairwise(found.tokens.tolist())):
        if first == last:
            assert np.isnan(surprisals[word])
            assert expected[word] == 0
        else:
            assert surprisals[word] == expected[word]


def test_a_token_over_several_words_goes_to_the_first() -> None:
    places = (np.array(values, np.int32) for values in ([5, 6], [0, 4], [4, 6], [4, 6]))
    found = words_of("a b cd", Encoded(*places))
    assert found.tokens.tolist() == [0, 1, 1, 2]
    surprisals = found.surprisals(np.array([-1.0, -2.0], np.float32))
    assert surprisals[[0, 2]].tolist() == [1, 2]
    assert np.isnan(surprisals[1])


def test_a_token_without_a_log_probability_leaves_its_word_without_a_surprisal(
    tokenizer: Tokenizer,
) -> None:
    text = "two words"
    encoded = tokenizer.encode(text)
    logprobs = np.full(len(encoded.ids), -1.0, np.float32)
    logprobs[0] = np.nan
    first, second = words_of(text, encoded).surprisals(logprobs)
    assert np.isnan(first)
    assert second > 0


# Token ids to text


@pytest.mark.parametrize("text", [*texts.ALL, "", "é", "🙂", "a\x00b"])
def test_the_tokens_of_a_text_are_read_with_their_places(tokenizer: Tokenizer, text: str) -> None:
    encoded = tokenizer.encode(text)
    found, places = read_tokens(tokenizer, encoded.ids.astype(np.int64))
    assert found == text
    for name in ("ids", "starts", "ends", "cuts"):
        assert getattr(places, name).tolist() == getattr(encoded, name).tolist()


@given(ids=st.lists(st.integers(0, 399), max_size=40))
def test_any_tokens_have_a_text_and_places_in_it(tokenizer: Tokenizer, ids: list[int]) -> None:
    text, places = read_tokens(tokenizer, np.array(ids, np.int64))
    assert text == tokenizer.decode(ids)
    assert places.ids.tolist() == ids
    assert (np.diff(places.starts) >= 0).all()
    assert (np.diff(places.cuts) >= 0).all()
    assert (places.starts <= places.ends).all()
    assert (places.cuts <= places.ends).all()
    if ids:
        assert places.cuts[-1] == places.ends[-1] == len(text)
        cuts = [0, *places.cuts.tolist()]
        assert "".join(text[a:b] for a, b in pairwise(cuts)) == text
    for token, start, end in zip(ids, places.starts, places.ends, strict=True):
        raw = tokenizer.token_bytes[token]
        if raw and "\ufffd" not in text[start:end]:
            # whole, or beside parts of the characters before and behind it
            assert raw in text[start:end].encode()


def test_whole_words_are_read_with_the_space_before_them() -> None:
    tokenizer = train_words(["the cat \n the"], 10)
    ids = tokenizer.encode("the dog\nthe").ids.astype(np.int64)
    text, places = read_tokens(tokenizer, ids)
    assert text == " the <unk>\n the"
    assert np.diff(words_of(text, places).tokens).tolist() == [1, 1, 2]
