"""Prompts to tokens, with and without the start symbol, whole or truncated."""

from __future__ import annotations

from itertools import pairwise

import pytest

from app.errors import RequestError, TooLargeError
from app.lm.prompts import AS_SENT, Prompt, PromptOptions, PromptReader
from app.lm.texts import TextReader
from app.settings import Settings
from app.text.tokens import TokenNames
from model.core.tokenizer import Tokenizer
from tests import texts


def read(
    tokenizer: Tokenizer,
    *prompts: str | list[int],
    options: PromptOptions = AS_SENT,
    limit: int = 1000,
) -> list[Prompt]:
    """Prompts, read within a limit."""
    reader = TextReader(tokenizer, Settings(max_request_tokens=limit), 5)
    return list(PromptReader(reader, TokenNames(tokenizer)).read(prompts, "prompt", options))


def test_a_text_has_a_start_symbol_that_is_not_one_of_its_tokens(tokenizer: Tokenizer) -> None:
    (prompt,) = read(tokenizer, texts.ODD)
    encoded = tokenizer.encode(texts.ODD)
    assert prompt.text == texts.ODD
    assert prompt.ids.tolist() == [tokenizer.start_id, *encoded.ids.tolist()]
    assert prompt.given == 1
    assert prompt.starts.tolist() == encoded.starts.tolist()


@pytest.mark.parametrize("special", [False, True])
def test_a_start_symbol_that_is_asked_for_is_a_token_of_the_prompt(
    tokenizer: Tokenizer, special: bool
) -> None:
    (prompt,) = read(tokenizer, "Alice", options=PromptOptions(start=True, special=special))
    assert prompt.given == 0
    assert prompt.ids[0] == tokenizer.start_id
    shown = "<s>" if special else ""
    assert prompt.text == f"{shown}Alice"
    assert len(prompt.starts) == len(prompt.ids)
    assert prompt.starts[:2].tolist() == [0, len(shown)]


def test_a_start_symbol_may_be_left_out_but_of_an_empty_prompt(tokenizer: Tokenizer) -> None:
    without = PromptOptions(start=False)
    (prompt,) = read(tokenizer, "Alice", options=without)
    assert prompt.ids.tolist() == tokenizer.encode("Alice").ids.tolist()
    assert prompt.given == 0
    with pytest.raises(RequestError, match=r"prompt\.1: an empty prompt needs its start symbol"):
        read(tokenizer, "a", "", options=without)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("start", [None, True])
def test_a_truncated_prompt_keeps_one_end_and_shows_what_it_keeps(
    tokenizer: Tokenizer, side: str, start: bool | None
) -> None:
    ids = tokenizer.encode(texts.ALICE).ids.tolist()
    options = PromptOptions(start=start, keep=4, side=side)  # type: ignore[arg-type]
    text, listed = read(tokenizer, texts.ALICE, ids, options=options)
    count = 3 if start else 4  # a start symbol that is sent is one of the four
    kept = ids[-count:] if side == "left" else ids[:count]
    assert text.ids.tolist() == [tokenizer.start_id, *kept]
    assert text.text == tokenizer.decode(kept)
    assert listed.ids.tolist() == (ids[-4:] if side == "left" else ids[:4])
    assert len(listed.ids) == 4
    assert listed.given == 0


@pytest.mark.parametrize("text", texts.ALL)
def test_ids_have_a_text_in_which_each_begins_where_the_last_ended(
    tokenizer: Tokenizer, text: str
) -> None:
    ids = tokenizer.encode(text).ids.tolist()
    (prompt,) = read(tokenizer, ids)
    assert prompt.text == text
    starts = prompt.starts.tolist()
    assert starts == tokenizer.encode(text).starts.tolist()
    assert all(a <= b for a, b in pairwise(starts))


def test_the_limit_counts_what_is_kept_of_all_prompts(tokenizer: Tokenizer) -> None:
    ids = [5] * 10
    keep = PromptOptions(keep=4)
    assert len(read(tokenizer, ids, ids, options=keep, limit=14)) == 2
    with pytest.raises(TooLargeError, match="prompt: over the limit max_request_tokens, 13"):
        read(tokenizer, ids, ids, options=keep, limit=13)
    with pytest.raises(TooLargeError):
        read(tokenizer, ids, ids, limit=19)
    assert len(read(tokenizer, ids, ids, limit=20)) == 2


def test_an_id_outside_the_vocabulary_is_named_with_its_prompt(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match=r"prompt\.1: token id 400 at place 0") as refused:
        read(tokenizer, [5], [400])
    assert refused.value.field == "prompt.1"
