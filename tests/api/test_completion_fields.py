"""Fields of completions beyond the everyday ones: what they change, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import texts
from tests.api.conftest import Reference, Server
from tests.api.test_completions import PATH, TOLERANCE, cut, generated, joined, streamed

BODY: dict[str, Any] = {"prompt": "Once upon", "seed": 3, "max_tokens": 40}


def ids_of(server: Server, **body: Any) -> list[int]:
    """The ids of the tokens that a request's only choice generates."""
    ids: list[int] = generated(server, **body, return_token_ids=True)["token_ids"]
    return ids


def greedy(reference: Reference, count: int, change: Any) -> list[int]:
    """Tokens behind "Alice was", each the largest of its changed log-probabilities."""
    new: list[int] = []
    for _ in range(count):
        row = reference.rows([*reference.ids("Alice was"), *new])[-1].astype(np.float64)
        row[reference.tokenizer.start_id] = -np.inf
        change(row, new)
        new.append(int(row.argmax()))
        if new[-1] == reference.tokenizer.end_id:
            break
    return new


# Changes of the distribution


def test_penalties_are_taken_off_what_was_generated(server: Server, reference: Reference) -> None:
    def penalised(row: np.ndarray, new: list[int]) -> None:
        for token in set(new):
            row[token] -= 1.5 + 0.5 * new.count(token)

    body = {"prompt": "Alice was", "temperature": 0, "max_tokens": 20}
    found = ids_of(server, **body, presence_penalty=1.5, frequency_penalty=0.5)
    assert found == greedy(reference, 20, penalised)
    assert found != ids_of(server, **body)


def test_the_repetition_penalty_sees_the_prompt_too(server: Server, reference: Reference) -> None:
    prompt = reference.ids("Alice was")[1:]

    def penalised(row: np.ndarray, new: list[int]) -> None:
        row[sorted({*new, *prompt})] *= 1.5

    body = {"prompt": "Alice was", "temperature": 0, "max_tokens": 20}
    found = ids_of(server, **body, repetition_penalty=1.5)
    assert found == greedy(reference, 20, penalised)


def test_a_bias_is_added_and_log_probabilities_stay_the_models(
    server: Server, reference: Reference
) -> None:
    choice = generated(
        server, prompt="Alice was", max_tokens=3, logprobs=0, logit_bias={"77": 100}, seed=1
    )
    assert choice["logprobs"]["tokens"] == [reference.tokenizer.decode([77])] * 3
    scores = reference.scores([*reference.ids("Alice was"), 77, 77, 77])[-3:]
    np.testing.assert_allclose(choice["logprobs"]["token_logprobs"], scores, atol=TOLERANCE)
    likeliest = ids_of(server, prompt="Alice was", temperature=0, max_tokens=1)[0]
    biased = {"temperature": 0, "max_tokens": 1, "logit_bias": {str(likeliest): -100}}
    assert ids_of(server, prompt="Alice was", **biased) != [likeliest]


def test_only_allowed_tokens_come_and_no_bad_words(server: Server, reference: Reference) -> None:
    allowed = list(range(100, 140))
    assert set(ids_of(server, **BODY, allowed_token_ids=allowed)) <= set(allowed)
    found = ids_of(server, **BODY)
    word = reference.tokenizer.decode(found[5:8])
    spelled = reference.tokenizer.encode(word).ids.tolist()
    again = ids_of(server, **BODY, bad_words=[word])
    assert all(again[n : n + len(spelled)] != spelled for n in range(len(again)))


@pytest.mark.parametrize(
    "extra",
    [
        {"presence_penalty": 1.0, "frequency_penalty": -0.5},
        {"repetition_penalty": 1.2, "min_p": 0.05, "top_p": 0.9},
        {"logit_bias": {"100": 3, "101": -5}, "bad_words": ["the"], "min_tokens": 20},
    ],
)
def test_a_seeded_text_with_changes_is_the_same_alone_and_beside_others(
    server: Server, extra: dict[str, Any]
) -> None:
    alone = generated(server, **BODY, **extra)
    among = server.ask(PATH, **{**BODY, "prompt": [texts.PRIDE, "Once upon", ""]}, n=1, **extra)
    assert among["choices"][1] == {**alone, "index": 1}
    assert joined(streamed(server, **BODY, **extra))[0] == alone


# The end


def test_nothing_ends_a_text_before_its_least_length(server: Server) -> None:
    body = {"prompt": "a", "seed": 1, "n": 8, "max_tokens": 300, "return_token_ids": True}
    sooner = server.ask(PATH, **body)["choices"]
    assert min(len(choice["token_ids"]) for choice in sooner) < 150
    later = server.ask(PATH, **body, min_tokens=150)["choices"]
    assert all(len(choice["token_ids"]) > 150 for choice in later)
    never = server.ask(PATH, **body, ignore_eos=True)["choices"]
    assert all(len(choice["token_ids"]) == 300 for choice in never)
    assert {choice["finish_reason"] for choice in never} == {"length"}


def test_a_stop_string_counts_only_behind_the_least_length(server: Server) -> None:
    whole = generated(server, **BODY)["text"]
    body = {**BODY, "stop": [whole[2:4]]}
    assert generated(server, **body)["text"] == cut(whole, body["stop"])
    assert generated(server, **body, min_tokens=40)["text"] == whole
    assert joined(streamed(server, **body, min_tokens=40))[0]["text"] == whole


def test_stop_tokens_end_the_text_and_are_its_reason(server: Server, reference: Reference) -> None:
    ids = ids_of(server, **BODY)
    stop = ids[9]
    place = ids.index(stop)
    for keep in (False, True):
        body = {**BODY, "stop_token_ids": [stop], "include_stop_str_in_output": keep}
        choice = generated(server, **body, return_token_ids=True, logprobs=0)
        assert choice["finish_reason"] == "stop"
        assert choice["stop_reason"] == stop
        assert choice["token_ids"] == ids[: place + 1]
        assert choice["text"] == reference.tokenizer.decode(ids[: place + keep])
        assert len(choice["logprobs"]["tokens"]) == place + 1
        assert joined(streamed(server, **body, return_token_ids=True, logprobs=0))[0] == choice


def test_a_stop_string_is_its_reason_and_may_be_kept(server: Server) -> None:
    whole = generated(server, **BODY)
    assert whole["stop_reason"] is None
    stop = whole["text"][10:13]
    choice = generated(server, **BODY, stop=["never there", stop])
    assert choice["stop_reason"] == stop
    kept = generated(server, **BODY, stop=stop, include_stop_str_in_output=True)
    assert kept["text"] == choice["text"] + stop
    assert joined(streamed(server, **BODY, stop=stop, include_stop_str_in_output=True))[0] == kept


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 5),
    places=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 6)), min_size=1, max_size=3),
    keep=st.booleans(),
    echo=st.booleans(),
    logprobs=st.sampled_from([None, 1]),
)
def test_no_stop_string_leaks_into_a_stream_of_whole_characters(
    server: Server,
    seed: int,
    places: list[tuple[int, int]],
    keep: bool,
    echo: bool,
    logprobs: int | None,
) -> None:
    # hot, so that many tokens are parts of characters; stops lie within tokens and across them
    body = {"prompt": "caf\u00e9", "seed": seed, "max_tokens": 40, "temperature": 1.5}
    whole = generated(server, **body)["text"]
    stops = [found for a, n in places if (found := whole[a : a + n])]
    body |= {"stop": stops, "include_stop_str_in_output": keep, "echo": echo, "logprobs": logprobs}
    answer = generated(server, **body)
    chunks = streamed(server, **body)  # whose bytes are checked to be UTF-8
    assert joined(chunks)[0] == answer
    front = "caf\u00e9" if echo else ""
    end = cut(whole, stops)
    stopped = answer["stop_reason"] is not None
    assert stopped == (end != whole)
    assert answer["text"] == front + end + (answer["stop_reason"] if keep and stopped else "")
    shown = ""
    for chunk in chunks:
        shown += chunk["choices"][0]["text"]
        assert answer["text"].startswith(shown)  # nothing was shown that was taken back


# Prompts


def test_a_start_symbol_may_be_listed_or_left_out(server: Server, reference: Reference) -> None:
    body = {"prompt": "Alice was", "max_tokens": 0, "echo": True, "logprobs": 0}
    ids = reference.ids("Alice was")
    given = generated(server, **body)
    listed = generated(server, **body, add_special_tokens=True)
    assert listed["text"] == "Alice was"
    assert listed["logprobs"]["tokens"] == ["<s>", *given["logprobs"]["tokens"]]
    assert listed["logprobs"]["text_offset"] == [0, *given["logprobs"]["text_offset"]]
    np.testing.assert_allclose(
        listed["logprobs"]["token_logprobs"][1:], reference.scores(ids), atol=TOLERANCE
    )
    without = generated(server, **body, add_special_tokens=False)
    assert without == generated(server, **{**body, "prompt": ids[1:]})
    usage = server.ask(PATH, **body, add_special_tokens=True)["usage"]
    assert usage["prompt_tokens"] == len(ids)
    refused = server.post(PATH, prompt="", add_special_tokens=False)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "prompt"


def test_special_symbols_show_when_asked_for(server: Server) -> None:
    body = {"prompt": [0, 50, 1, 60], "max_tokens": 0, "echo": True, "logprobs": 0}
    hidden = generated(server, **body)
    shown = generated(server, **body, skip_special_tokens=False)
    assert "<s>" not in hidden["text"]
    assert shown["text"].startswith("<s>")
    assert "</s>" in shown["text"]
    for token, offset in zip(
        *(shown["logprobs"][k] for k in ("tokens", "text_offset")), strict=True
    ):
        assert shown["text"][offset:].startswith(token)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prompt_is_cut_only_when_asked_to(
    server: Server, reference: Reference, side: str
) -> None:
    text = texts.ODD
    ids = reference.ids(text)[1:]
    kept = ids[-9:] if side == "left" else ids[:9]
    body = {"max_tokens": 5, "seed": 1, "echo": True, "logprobs": 0}
    cutting = {"truncate_prompt_tokens": 9, "truncation_side": side}
    found = generated(server, prompt=text, **body, **cutting)
    assert found["text"].startswith(reference.tokenizer.decode(kept))
    same = generated(server, prompt=[reference.tokenizer.start_id, *kept], **body)
    assert same["logprobs"]["token_logprobs"][2:] == found["logprobs"]["token_logprobs"][1:]
    usage = server.ask(PATH, prompt=text, **body, **cutting)["usage"]
    assert usage["prompt_tokens"] == 9
    assert generated(server, prompt=ids, **body, **cutting) == generated(
        server, prompt=kept, **body
    )


# What is listed


@pytest.mark.parametrize("prompt", ["Alice was beginning", texts.ALICE * 3, "x", ""])
@pytest.mark.parametrize("n", [1, 3])
def test_prompt_logprobs_list_the_likeliest_tokens_of_each_place(
    server: Server, reference: Reference, prompt: str, n: int
) -> None:
    answer = server.ask(PATH, prompt=prompt, prompt_logprobs=4, max_tokens=2, n=n, seed=1)
    ids = reference.ids(prompt)
    rows = reference.rows(ids)
    for choice in answer["choices"]:
        places = choice["prompt_logprobs"]
        assert len(places) == len(ids) - 1
        assert choice["logprobs"] is None
        assert places[:1] in ([], [None])
        for place, row, token in zip(places[1:], rows[1:], ids[2:], strict=False):
            assert next(iter(place)) == str(token)
            assert place[str(token)]["logprob"] == pytest.approx(row[token], abs=TOLERANCE)
            assert len(place) in (4, 5)
            ranked = sorted((f["rank"], f["logprob"]) for f in place.values())[:4]
            best = np.sort(row)[::-1][:4]
            np.testing.assert_allclose([value for _, value in ranked], best, atol=TOLERANCE)
            for other, found in place.items():
                assert found["decoded_token"] == server.model.token_string(int(other))
                better, equal = row > row[int(other)] + 1e-4, row > row[int(other)] - 1e-4
                assert better.sum() < found["rank"] <= equal.sum() + 1
    assert answer["choices"][0]["prompt_logprobs"] == answer["choices"][-1]["prompt_logprobs"]


def test_a_prompts_own_tokens_have_the_ranks_that_scoring_gives(
    server: Server, reference: Reference
) -> None:
    ids = reference.ids(texts.PRIDE + texts.ODD)
    (scored,) = server.ask("/v1/score", input=ids[1:], ranks=True)["data"]
    assert max(scored["ranks"]) > 20
    body = {"max_tokens": 1, "seed": 1}
    for prompt in (ids, texts.PRIDE + texts.ODD):
        for count in (0, 3):
            for n in (1, 2):
                answer = server.ask(PATH, prompt=prompt, prompt_logprobs=count, n=n, **body)
                own = ids if prompt is ids else ids[1:]
                expected = scored["ranks"][len(scored["ranks"]) - len(own) + 1 :]
                for choice in answer["choices"]:
                    places = choice["prompt_logprobs"][1:]
                    found = [
                        place[str(token)]["rank"]
                        for place, token in zip(places, own[1:], strict=True)
                    ]
                    assert found == expected


def test_prompt_logprobs_and_an_echo_do_not_mix(server: Server) -> None:
    body = {"prompt": "Alice was beginning", "max_tokens": 2, "seed": 1, "echo": True}
    echoed = generated(server, **body, logprobs=2)
    both = generated(server, **body, logprobs=2, prompt_logprobs=5)
    alone = generated(server, **body, prompt_logprobs=5)
    assert both == {**echoed, "prompt_logprobs": alone["prompt_logprobs"]}
    only = generated(server, **body, logprobs=2, prompt_logprobs=0)
    assert all(len(place) == 1 for place in only["prompt_logprobs"][1:])
    assert only["logprobs"] == echoed["logprobs"]


def test_choices_share_the_scores_of_an_echoed_prompt(server: Server) -> None:
    body = {"prompt": [texts.PRIDE, "Once"], "max_tokens": 4, "seed": 1, "echo": True}
    before = server.metric('convlm_rows_total{kind="score"}')
    answer = server.ask(PATH, **body, logprobs=2, n=5)
    rows = server.metric('convlm_rows_total{kind="score"}') - before
    assert 0 < rows < 1.2 * answer["usage"]["prompt_tokens"]
    alone = server.ask(PATH, **body, logprobs=2)["choices"]
    assert [{**answer["choices"][5 * n], "index": n} for n in range(2)] == alone
    found = joined(streamed(server, **body, logprobs=2, n=5))
    assert [found[n] for n in range(10)] == answer["choices"]
    assert answer["choices"][0] != answer["choices"][1]


def test_ids_of_tokens_are_listed(server: Server, reference: Reference) -> None:
    body = {**BODY, "n": 2, "return_token_ids": True}
    answer = server.ask(PATH, **body)
    for choice in answer["choices"]:
        assert choice["prompt_token_ids"] == reference.ids("Once upon")[1:]
        assert reference.tokenizer.decode(choice["token_ids"]) == choice["text"]
    chunks = streamed(server, **body)
    assert [joined(chunks)[n] for n in range(2)] == answer["choices"]
    listed = [chunk["choices"][0]["prompt_token_ids"] for chunk in chunks]
    assert sum(ids is not None for ids in listed) == 2


def test_tokens_may_be_written_as_ids(server: Server) -> None:
    body = {**BODY, "logprobs": 3, "return_token_ids": True, "return_tokens_as_token_ids": True}
    choice = generated(server, **body)
    names = [f"token_id:{token}" for token in choice["token_ids"]]
    assert choice["logprobs"]["tokens"] == names
    for name, top in zip(names, choice["logprobs"]["top_logprobs"], strict=True):
        assert name in top
        assert len(top) in (3, 4)


def test_the_alternatives_may_be_named(server: Server, reference: Reference) -> None:
    body = {"prompt": "Alice was", "max_tokens": 3, "seed": 1, "echo": True}
    choice = generated(
        server,
        **body,
        logprob_token_ids=[60, 100, 60],
        return_tokens_as_token_ids=True,
        return_token_ids=True,
    )
    ids = [*reference.ids("Alice was"), *choice["token_ids"]]
    for top, row, token in zip(
        choice["logprobs"]["top_logprobs"][1:], reference.rows(ids)[1:], ids[2:], strict=False
    ):
        assert set(top) == {"token_id:60", "token_id:100", f"token_id:{token}"}
        assert top["token_id:100"] == pytest.approx(row[100], abs=TOLERANCE)


def test_the_whole_vocabulary_is_over_the_limit(server: Server) -> None:
    for name in ("logprobs", "prompt_logprobs"):
        response = server.post(PATH, prompt="a", **{name: -1})
        assert response.status_code == 413
        assert response.json()["error"]["param"] == name


def test_usage_may_come_with_every_chunk(server: Server) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = streamed(server, **BODY, stream_options=options)
    usages = [chunk["usage"] for chunk in chunks]
    counts = [usage["completion_tokens"] for usage in usages]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    assert usages[-1] == server.ask(PATH, **BODY)["usage"]
    assert usages[-1] == usages[-2]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "logprob_token_ids": [5]}, "logprob_token_ids"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"min_tokens": 1, "stop_token_ids": list(range(400))}, "min_tokens"),
        ({"allowed_token_ids": [1], "ignore_eos": True}, "allowed_token_ids"),
    ],
)
def test_what_cannot_be_had_together_is_refused(
    server: Server, body: dict[str, Any], param: str
) -> None:
    response = server.post(PATH, prompt="a", **body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_a_long_answer_is_sent_whole(server: Server) -> None:
    text = " ".join(str(n) for n in range(3000))
    answer = server.ask(PATH, prompt=text, prompt_logprobs=2, max_tokens=0, echo=True, logprobs=1)
    (choice,) = answer["choices"]
    assert choice["text"] == text
    count = answer["usage"]["prompt_tokens"]
    assert len(choice["prompt_logprobs"]) == count
    assert len(choice["logprobs"]["tokens"]) == count
