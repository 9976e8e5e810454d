"""Texts to tokens: what is scored, what is before it, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.errors import RequestError, TooLargeError
from app.lm.texts import TextGroup, TextReader, TextTokens, tokens_read
from app.lm.threads import INLINE_CHARACTERS
from app.settings import Settings
from model.core.text_cache import BLOCK
from model.core.tokenizer import Tokenizer, train_words
from tests import texts

HALO = 5


def reader(tokenizer: Tokenizer, **limits: Any) -> TextReader:
    """A reader with some limits of a request."""
    return TextReader(tokenizer, Settings(**limits), HALO)


def read(
    tokenizer: Tokenizer, text: str | list[int], context: str | list[int] = "", **options: Any
) -> TextTokens:
    """One text."""
    options = {"add_eos": False} | options
    ((found,),) = reader(tokenizer).read([TextGroup([text], context)], **options)
    return found


@pytest.mark.parametrize("text", [*texts.ALL, "é", " "])
@pytest.mark.parametrize("add_eos", [False, True])
def test_a_text_is_scored_after_the_start_symbol(
    tokenizer: Tokenizer, text: str, add_eos: bool
) -> None:
    found = read(tokenizer, text, add_eos=add_eos)
    ids = tokenizer.encode(text).ids.tolist()
    end = [tokenizer.end_id] * add_eos
    assert found.ids.tolist() == [tokenizer.start_id, *ids, *end]
    assert found.text_ids.tolist() == [*ids, *end]
    assert found.prefix_length == 1
    assert found.scored == found.tokens_read == len(ids) + add_eos
    assert found.context_length == 0
    assert not found.first_is_unscored
    assert found.eos_scored is add_eos


@pytest.mark.parametrize("length", [1, HALO - 1, HALO, HALO + 1, HALO + 2, 40])
@pytest.mark.parametrize("start", [False, True])
def test_a_text_has_as_much_of_its_context_as_its_first_row_sees(
    tokenizer: Tokenizer, length: int, start: bool
) -> None:
    context = tokenizer.encode(texts.ALICE).ids[:length].tolist()
    found = read(tokenizer, [7, 8, 9], context, start=start)
    prefix = [tokenizer.start_id] * start + context
    seen = prefix[-HALO - 1 :]
    assert found.ids.tolist() == [*seen, 7, 8, 9]
    assert found.prefix_length == len(seen)
    assert found.prefix.tolist() == prefix
    assert found.context_length == length
    assert found.scored == 3
    assert tokens_read([found, found]) == length + 6


def test_a_first_token_with_nothing_before_it_is_read_and_not_scored(tokenizer: Tokenizer) -> None:
    found = read(tokenizer, [7, 8, 9], start=False)
    assert found.first_is_unscored
    assert found.ids.tolist() == found.text_ids.tolist() == [7, 8, 9]
    assert (found.prefix_length, found.scored, found.tokens_read) == (1, 2, 3)
    assert found.cache_text.tolist() == [7, 8, 9]


def test_token_ids_are_taken_as_they_are_and_have_a_text(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.end_id, *tokenizer.encode(texts.PRIDE).ids.tolist(), tokenizer.start_id]
    found = read(tokenizer, ids)
    assert found.text_ids.tolist() == ids
    assert found.text == texts.PRIDE


def test_a_text_of_symbols_without_characters_is_as_large_as_its_tokens(
    tokenizer: Tokenizer,
) -> None:
    found = read(tokenizer, [tokenizer.start_id] * 100)
    assert found.text == ""
    assert found.size == 101


@pytest.mark.parametrize(
    ("before", "dropped"),
    [(3, 0), (2 * BLOCK - 2, 0), (2 * BLOCK - 1, BLOCK), (3 * BLOCK, 2 * BLOCK)],
)
def test_a_cache_reads_the_blocks_of_the_context_that_it_counts(
    tokenizer: Tokenizer, before: int, dropped: int
) -> None:
    context = [2 + n % 300 for n in range(before)]
    found = read(tokenizer, [7, 8], context)
    assert found.cache_text.tolist() == [tokenizer.start_id, *context, 7, 8][dropped:]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    several=st.lists(
        st.text(min_size=1, max_size=30) | st.lists(st.integers(0, 399), min_size=1, max_size=9),
        min_size=1,
        max_size=150,
    ),
    context=st.sampled_from(["", "It was", [5, 6, 7, 8, 9, 10, 11]]),
)
def test_texts_of_a_group_are_read_as_each_of_them_alone(
    tokenizer: Tokenizer, several: list[str | list[int]], context: str | list[int]
) -> None:
    (together,) = reader(tokenizer).read([TextGroup(several, context)], add_eos=True)
    for text, found in zip(several, together, strict=True):
        alone = read(tokenizer, text, context, add_eos=True)
        assert found.text == alone.text
        assert found.ids.tolist() == alone.ids.tolist()
        assert found.encoded.cuts.tolist() == alone.encoded.cuts.tolist()


def test_long_texts_of_a_group_are_read_as_each_of_them_alone(tokenizer: Tokenizer) -> None:
    long = " ".join(texts.ALL) * (70 * INLINE_CHARACTERS // len(" ".join(texts.ALL)))
    (together,) = reader(tokenizer).read([TextGroup([long, "short"])], add_eos=False)
    for text, found in zip([long, "short"], together, strict=True):
        assert found.ids.tolist() == read(tokenizer, text).ids.tolist()


def test_the_limit_counts_all_texts_and_each_context_once(tokenizer: Tokenizer) -> None:
    groups = [TextGroup([[5] * 3, [6] * 3], [7] * 4), TextGroup([[8] * 2], "", "other")]
    reader(tokenizer, max_request_tokens=12).read(groups, add_eos=False)
    with pytest.raises(TooLargeError, match="other: over the limit max_request_tokens, 11") as over:
        reader(tokenizer, max_request_tokens=11).read(groups, add_eos=False)
    assert over.value.field == "other"
    with pytest.raises(TooLargeError, match="input: over"):
        reader(tokenizer, max_request_tokens=11).read(groups, add_eos=True)
    with pytest.raises(TooLargeError, match="context: over"):
        reader(tokenizer, max_request_tokens=3).read(groups, add_eos=False)


def test_no_more_of_a_long_text_is_read_than_the_limit_needs(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    encode = Tokenizer.encode

    def watched(self: Tokenizer, text: str, limit: int | None = None) -> Any:
        found = encode(self, text, limit)
        seen.append(len(found.ids))
        return found

    monkeypatch.setattr(Tokenizer, "encode", watched)
    long = "Alice was beginning to get very tired. " * 20_000
    with pytest.raises(TooLargeError):
        reader(tokenizer, max_request_tokens=1000).read([TextGroup([long, long])], add_eos=False)
    assert len(seen) == 1
    assert 1000 < seen[0] < 20_000


@pytest.mark.parametrize("empty", ["", []])
def test_an_empty_text_is_refused_by_its_name_unless_its_end_is_scored(
    tokenizer: Tokenizer, empty: str | list[int]
) -> None:
    group = TextGroup(["a", empty, "b"], "", "candidates")
    with pytest.raises(RequestError, match=r"candidates\.1: an empty text") as refused:
        reader(tokenizer).read([group], add_eos=False)
    assert refused.value.field == "candidates.1"
    ((_, found, _),) = reader(tokenizer).read([group], add_eos=True)
    assert found.text_ids.tolist() == [tokenizer.end_id]


def test_a_text_without_tokens_is_refused() -> None:
    words = train_words(texts.ALL, 50)
    with pytest.raises(RequestError, match=r"^input: there is no token to score$"):
        read(words, "  ")


def test_a_token_alone_without_a_start_symbol_is_refused(tokenizer: Tokenizer) -> None:
    group = TextGroup([[5, 6], [7]])
    with pytest.raises(RequestError, match=r"input\.1: there is no token.*start symbol"):
        reader(tokenizer).read([group], add_eos=False, start=False)


@pytest.mark.parametrize("bad", [400, -1, 10**30])
def test_an_id_outside_the_vocabulary_is_named(tokenizer: Tokenizer, bad: int) -> None:
    message = f"tokens: token id {bad} at place 2 is not in the vocabulary, 0 to 399"
    with pytest.raises(RequestError, match=message):
        reader(tokenizer).read_ids([0, 399, bad, -5], "tokens")
    assert reader(tokenizer).read_ids([0, 399], "tokens").tolist() == [0, 399]
    assert reader(tokenizer).read_ids([], "tokens").dtype == np.int64
