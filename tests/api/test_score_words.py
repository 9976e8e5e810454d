"""POST /v1/score by word, and the ranks of tokens."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.wire.score import ScoreResponse
from tests import texts
from tests.api.conftest import Reference, Server


def exact(logprobs: list[float]) -> list[float]:
    """Log-probabilities, which are written as the shortest decimals that name a float32."""
    return [float(value) for value in np.array(logprobs, np.float32)]


def surprisals_by_hand(text: str, offsets: list[list[int]], logprobs: list[float]) -> list[float]:
    """Each word's surprisal by a loop over the tokens, from nothing but the answer's lists."""
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    sums = [0.0] * len(spans)
    word = 0
    for (start, _), logprob in zip(offsets, exact(logprobs), strict=True):
        while start < len(text) and text[start].isspace():
            start += 1
        while word + 1 < len(spans) and spans[word][1] <= start:
            word += 1
        sums[word] -= logprob
    return sums


def check(text: str, scored: dict[str, Any]) -> int:
    """Compares a text's words with those found by hand; returns how many there are."""
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    words = scored["words"]
    assert [word["word"] for word in words] == text.split()
    assert [tuple(word["offsets"]) for word in words] == spans
    for start, end in scored["offsets"]:
        assert 0 <= start < end <= len(text)
    expected = surprisals_by_hand(text, scored["offsets"], scored["logprobs"])
    np.testing.assert_allclose([word["surprisal"] for word in words], expected, rtol=1e-9)
    total = sum(word["surprisal"] for word in words)
    assert total == pytest.approx(-scored["logprob_sum"], rel=1e-9)
    assert len(words) == scored["word_count"]
    return len(words)


ODD_SPACES = [
    "one",
    "  in front",
    "behind  ",
    "\n\nlines\n\nand\tlines\r\n",
    "a\u00a0b\u2003c\u3000d",
    "e\u0301a\u0308 \u0915\u094d\u0937\u093f zo\u0308e",
    "\U0001f469\u200d\U0001f680 \U0001f642\U0001f642 \U0001f1eb\U0001f1f7!",
    "x\r\ny\r\nz",
    "\u200bnot a space",
    "a\x1cb\x1dc \x85d",
    "\u00a0\u00a0\u00a0x",
    "x\u3000\u3000",
]


@pytest.mark.parametrize("text", [*texts.ALL, *ODD_SPACES])
def test_words_have_the_sums_of_their_tokens(server: Server, text: str) -> None:
    (found,) = server.ask("/v1/score", input=text, words=True)["data"]
    check(text, found)
    ScoreResponse.model_validate(server.ask("/v1/score", input=text, words=True))
    for word in found["words"]:
        first, last = word["tokens"]
        own = -sum(exact(found["logprobs"][first:last]))
        assert word["surprisal"] == pytest.approx(own, rel=1e-9)
    assert found["words"][0]["tokens"][0] == 0
    assert found["words"][-1]["tokens"][1] == found["token_count"]


def test_the_end_symbol_is_a_word_of_its_own(server: Server) -> None:
    text = "two words \n"
    body = {"input": text, "words": True}
    (plain,) = server.ask("/v1/score", **body)["data"]
    (ended,) = server.ask("/v1/score", **body, add_eos=True)["data"]
    assert ended["words"][:-1] == plain["words"]
    count = ended["token_count"]
    assert ended["words"][-1] == {
        "word": "</s>",
        "offsets": [len(text), len(text)],
        "surprisal": -exact(ended["logprobs"])[-1],
        "tokens": [count - 1, count],
    }
    assert len(ended["words"]) == ended["word_count"]
    (empty,) = server.ask("/v1/score", input="", words=True, add_eos=True)["data"]
    assert [word["word"] for word in empty["words"]] == ["</s>"]


def test_a_text_without_words_has_none(server: Server) -> None:
    (found,) = server.ask("/v1/score", input=" \n\u00a0", words=True)["data"]
    assert found["words"] == []
    assert found["token_count"] > 0


def test_words_come_without_tokens_and_behind_a_context(server: Server) -> None:
    body = {"input": list(texts.ALL), "context": "So it was. ", "words": True, "add_eos": True}
    full = server.ask("/v1/score", **body)
    short = server.ask("/v1/score", **body, detail="totals")
    lists = {"tokens", "token_ids", "offsets", "logprobs"}
    for one, other in zip(full["data"], short["data"], strict=True):
        assert {name: value for name, value in one.items() if name not in lists} == other


def test_a_rank_counts_the_tokens_that_are_more_probable(
    server: Server, reference: Reference
) -> None:
    ids = reference.ids(texts.ALICE, add_eos=True)
    (found,) = server.ask("/v1/score", input=texts.ALICE, ranks=True, add_eos=True)["data"]
    assert "top_logprobs" not in found
    rows = reference.rows(ids)[:-1]
    assert len(found["ranks"]) == len(rows)
    for row, token, rank in zip(rows, ids[1:], found["ranks"], strict=True):
        # a token as probable as another in float32 may come before it here and behind it there
        assert (row > row[token] + 1e-4).sum() < rank <= (row > row[token] - 1e-4).sum() + 1


def test_ranks_agree_with_the_alternatives(server: Server) -> None:
    body = {"input": [texts.PRIDE, texts.ODD], "ranks": True, "top_logprobs": 20}
    ranked = 0
    for text in server.ask("/v1/score", **body)["data"]:
        for token, rank, listed in zip(
            text["token_ids"], text["ranks"], text["top_logprobs"], strict=True
        ):
            places = [n for n, entry in enumerate(listed, 1) if entry["token_id"] == token]
            assert places == ([rank] if rank <= 20 else [])
            ranked += rank <= 20
    assert ranked > 3
    plain = server.ask("/v1/score", **{**body, "ranks": False})
    for one, other in zip(server.ask("/v1/score", **body)["data"], plain["data"], strict=True):
        assert {k: v for k, v in one.items() if k != "ranks"} == other


# Real sentences

SENTENCES = (
    (Path(__file__).parents[1] / "data" / "udhr-35-languages.txt")
    .read_text(encoding="utf-8")
    .splitlines()
)


def altered(place: int, sentence: str) -> str:
    """A sentence as it may be written elsewhere."""
    match place % 5:
        case 0:
            return unicodedata.normalize("NFD", sentence)
        case 1:
            return sentence.replace(" ", "\u00a0", 1).replace(" ", " \u202f", 1)
        case 2:
            return sentence.replace(" ", " \U0001f469\U0001f3fd\u200d\U0001f680 ", 2) + "\U0001f642"
        case 3:
            return f"{sentence}\r\n\r\n{SENTENCES[place - 1]}\r\n"
        case _:
            return f"\ufeff  {sentence.replace(' ', '  ')}\u3000"


def check_all(server: Server, sentences: list[str], size: int) -> int:
    """Checks texts, `size` a request; returns how many words there are."""
    count = 0
    for first in range(0, len(sentences), size):
        texts_ = sentences[first : first + size]
        answer = server.ask("/v1/score", input=texts_, words=True)
        for text, scored in zip(texts_, answer["data"], strict=True):
            count += check(text, scored)
            assert "".join(scored["tokens"]) == text
            for token, (start, end) in zip(scored["tokens"], scored["offsets"], strict=True):
                assert token in text[start:end]  # beside characters it has a part of
    return count


def test_the_words_of_a_thousand_sentences_in_many_scripts(server: Server) -> None:
    assert len(set(SENTENCES)) == len(SENTENCES) > 1000
    joined = "".join(SENTENCES)
    assert sum(unicodedata.category(letter).startswith("M") for letter in set(joined)) > 100
    assert check_all(server, SENTENCES, 300) > 9_000


def test_the_words_of_sentences_with_marks_emoji_and_odd_spaces(server: Server) -> None:
    others = [altered(n, s) for n, s in enumerate(SENTENCES) if n % 8 == 1]
    joined = "".join(others)
    for odd in ("\r\n", "\u00a0", "\u202f", "\u3000", "\u0301", "\U0001f469", "\u200d"):
        assert odd in joined
    check_all(server, others, 300)
