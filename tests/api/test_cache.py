"""`cache`: the network's scores with what the text and its context have said so far mixed in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from model.core.text_cache import BLOCK, with_cache
from tests.api.conftest import Server
from tests.api.http.test_errors import error_of
from tests.api.test_bulk import answers
from tests.api.test_score import BOOK, text_of

NAMES = "Mr. Pickwick bowed to Mr. Jingle, and Mr. Jingle bowed to Mr. Pickwick."


def logprobs(answer: dict[str, Any]) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    return [
        np.array([p for p in text["logprobs"] if p is not None], np.float32)
        for text in answer["data"]
    ]


def tokens_of(server: Server, text: str, *, special: bool = True) -> list[int]:
    found: list[int] = server.ask("/v1/tokenize", prompt=text, add_special_tokens=special)["tokens"]
    return found


@pytest.mark.parametrize("options", [{}, {"add_eos": True}, {"add_special_tokens": False}])
@pytest.mark.parametrize("context", ["", "Mr. Weller looked on. "])
def test_scores_are_the_networks_with_the_cache(
    server: Server, context: str, options: dict[str, Any]
) -> None:
    inputs = [NAMES, "Mr. Pickwick slept.", NAMES * 30]
    asked = {"input": inputs, "context": context, **options}
    plain, cached = server.ask("/v1/score", **asked), server.ask("/v1/score", **asked, cache=True)
    start = options.get("add_special_tokens", True)
    before = tokens_of(server, context, special=start) if context or start else []
    for text, own, found in zip(plain["data"], logprobs(plain), logprobs(cached), strict=True):
        ids = np.array([*before, *text["token_ids"]])
        np.testing.assert_array_equal(found, with_cache(ids, own))
    sums = [text["logprob_sum"] for text in cached["data"]]
    np.testing.assert_allclose(sums, [p.sum() for p in logprobs(cached)], rtol=1e-5)
    assert cached["totals"]["perplexity"] < plain["totals"]["perplexity"]
    for name in ("token_count", "word_count", "byte_count"):
        assert cached["totals"][name] == plain["totals"][name]
    # each by itself: texts of a request share a context and nothing else
    for text, found in zip(inputs, logprobs(cached), strict=True):
        (alone,) = logprobs(server.ask("/v1/score", **{**asked, "input": text}, cache=True))
        np.testing.assert_array_equal(alone, found)


def test_a_text_of_several_spans(server: Server) -> None:
    text = BOOK + BOOK
    plain, cached = (server.ask("/v1/score", input=text, cache=c) for c in (False, True))
    ids = np.array([server.model.tokenizer.start_id, *plain["data"][0]["token_ids"]])
    assert len(ids) > 2 * BLOCK
    np.testing.assert_array_equal(logprobs(cached)[0], with_cache(ids, logprobs(plain)[0]))


def test_a_context_counts_beyond_what_the_network_sees(server: Server) -> None:
    said = "Dr. Quibblethorpe. "
    far = said + text_of(server.model.tokenizer, 300)
    for length in (0, BLOCK - 150, 2 * BLOCK):
        context = BOOK[: 4 * length] + far
        plain, cached = (
            server.ask("/v1/score", input=" Quibblethorpe", context=context, cache=c)
            for c in (False, True)
        )
        assert cached["totals"]["logprob_sum"] > plain["totals"]["logprob_sum"] + 2
        before = tokens_of(server, context)
        ids = np.array([*before, *plain["data"][0]["token_ids"]])
        np.testing.assert_array_equal(logprobs(cached)[0], with_cache(ids, logprobs(plain)[0]))


def test_rescoring_with_the_cache_is_scoring_with_it(server: Server) -> None:
    context, texts = NAMES, [" Mr. Pickwick bowed.", " Mr. Pickle bowed.", " Mr. Jingle"]
    scored = server.ask("/v1/score", input=texts, context=context, cache=True, detail="totals")
    other = {"context": "", "hypotheses": [NAMES]}
    for cache in (True, False):
        answer = server.ask(
            "/v1/rescore",
            utterances=[other, {"context": context, "hypotheses": texts}],
            cache=cache,
        )
        ranked = sorted(answer["data"][1]["hypotheses"], key=lambda h: h["index"])
        found = [h["logprob_sum"] for h in ranked]
        assert (found == [t["logprob_sum"] for t in scored["data"]]) is cache


def test_lines_with_and_without_the_cache_are_answered_apart(server: Server) -> None:
    lines = [{"input": NAMES, "cache": n % 2 == 1, "detail": "totals"} for n in range(6)]
    alone = [server.ask("/v1/score", **line) for line in lines]
    *found, _ = answers(server, *lines)
    assert [line["totals"] for line in found] == [line["totals"] for line in alone]
    assert found[0]["totals"] != found[1]["totals"]


@pytest.mark.parametrize("beside", [{"top_logprobs": 1}, {"ranks": True}])
def test_alternatives_with_the_cache_are_refused(server: Server, beside: dict[str, Any]) -> None:
    error = error_of(server.post("/v1/score", input="a", cache=True, **beside), 400)
    assert error["message"].startswith("cache: ")
    line, _ = answers(server, {"input": "a", "cache": True, **beside})
    assert line["error"]["message"] == error["message"]
