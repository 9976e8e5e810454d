"""POST /v1/completions: OpenAI's shape, the model's own numbers, the same seed the same text."""

from __future__ import annotations

import json
import re
import threading
from itertools import accumulate
from typing import Any

import httpx
import numpy as np
import pytest

from app.engine.runtime.session import Session
from app.errors import EngineError
from app.wire.completions import CompletionResponse
from model.core.flat_batch import FlatBatch
from tests import texts
from tests.api.conftest import Reference, Server, eventually

PATH = "/v1/completions"
TOLERANCE = 1e-4
REPLACEMENT = "\ufffd"


def frames(response: httpx.Response) -> list[Any]:
    """The objects of an event stream, whose form is checked to the byte."""
    raw = response.content
    assert raw.endswith(b"data: [DONE]\n\n")
    parts = raw.split(b"\n\n")
    assert parts.pop() == b""
    assert all(part.startswith(b"data: ") and b"\n" not in part for part in parts)
    assert all(part.decode("utf-8") for part in parts)
    return [json.loads(part[6:]) for part in parts[:-1]]


def streamed(server: Server, **body: Any) -> list[Any]:
    """The chunks of a streamed answer."""
    response = server.post(PATH, **body, stream=True)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return frames(response)


OPTIONAL = ("token_ids", "prompt_token_ids", "prompt_logprobs")
"""Fields of a choice that are null unless they are asked for."""


def joined(chunks: list[Any]) -> dict[int, dict[str, Any]]:
    """Choices put together from chunks, as a client does."""
    found: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            known = found.setdefault(
                choice["index"],
                {
                    "index": choice["index"],
                    "text": "",
                    "logprobs": None,
                    "finish_reason": None,
                    "stop_reason": None,
                    **dict.fromkeys(OPTIONAL),
                },
            )
            assert known["finish_reason"] is None, "a chunk behind the last"
            known["text"] += choice["text"]
            known["finish_reason"] = choice["finish_reason"]
            known["stop_reason"] = choice["stop_reason"]
            for name in ("token_ids", "prompt_token_ids"):
                if choice[name] is not None:
                    known[name] = (known[name] or []) + choice[name]
            if choice["logprobs"] is not None:
                lists = known["logprobs"] or {name: [] for name in choice["logprobs"]}
                known["logprobs"] = {k: v + choice["logprobs"][k] for k, v in lists.items()}
    return found


def generated(server: Server, **body: Any) -> dict[str, Any]:
    """The only choice of a request."""
    (choice,) = server.ask(PATH, **body)["choices"]
    return choice


def test_the_answer_has_the_documented_fields(server: Server) -> None:
    answer = server.ask(PATH, prompt="Alice", max_tokens=5)
    assert set(answer) == {
        "id",
        "object",
        "created",
        "model",
        "system_fingerprint",
        "choices",
        "usage",
    }
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["model"] == "tiny"
    (choice,) = answer["choices"]
    assert set(choice) == {"index", "text", "logprobs", "finish_reason", "stop_reason", *OPTIONAL}
    assert all(choice[name] is None for name in ("logprobs", *OPTIONAL))
    (chunk, *_) = streamed(server, prompt="Alice", max_tokens=5)
    assert {name for name in choice if name not in chunk["choices"][0]} == {"prompt_logprobs"}
    assert all(chunk["choices"][0][name] is None for name in OPTIONAL[:2])
    CompletionResponse.model_validate(answer)
    again = server.ask(PATH, prompt="Alice", max_tokens=5)
    assert again["id"] != answer["id"]
    assert again["system_fingerprint"] == answer["system_fingerprint"]


# What is generated


@pytest.mark.parametrize("prompt", ["", "Alice was", texts.ODD, texts.ALICE * 3])
def test_temperature_zero_takes_the_most_probable_token(
    server: Server, reference: Reference, prompt: str
) -> None:
    choice = generated(server, prompt=prompt, temperature=0, max_tokens=12, logprobs=1)
    ids = reference.ids(prompt)
    new: list[int] = []
    for _ in range(12):
        row = reference.rows([*ids, *new][-20:])[-1].copy()  # R is 9
        row[reference.tokenizer.start_id] = -np.inf
        new.append(int(row.argmax()))
    assert choice["text"] == reference.tokenizer.decode(new)
    scores = reference.scores([*ids, *new])[-12:]
    np.testing.assert_allclose(choice["logprobs"]["token_logprobs"], scores, atol=TOLERANCE)


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-6}])
def test_narrow_sampling_is_greedy(server: Server, narrow: dict[str, float]) -> None:
    greedy = generated(server, prompt="Alice", temperature=0, max_tokens=20)
    assert generated(server, prompt="Alice", max_tokens=20, **narrow) == greedy


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-300])
def test_the_lowest_temperatures_are_greedy(server: Server, temperature: float) -> None:
    greedy = generated(server, prompt="Alice", temperature=0, max_tokens=8)
    found = generated(server, prompt="Alice", temperature=temperature, max_tokens=8, top_p=0.9)
    assert found == greedy
    assert generated(server, prompt="Alice", temperature=temperature, max_tokens=8) == greedy


@pytest.mark.parametrize("seed", [0, 7, -1, 2**63 - 1, -(2**63)])
def test_the_same_seed_gives_the_same_text(server: Server, seed: int) -> None:
    body = {"prompt": "Once upon", "seed": seed, "max_tokens": 30}
    first = generated(server, **body)
    assert generated(server, **body) == first
    assert generated(server, **{**body, "seed": seed // 2 + 1})["text"] != first["text"]


def test_without_a_seed_texts_differ(server: Server) -> None:
    found = {generated(server, prompt="Once", max_tokens=20)["text"] for _ in range(3)}
    assert len(found) == 3


def test_the_same_seed_gives_the_same_text_under_load(server: Server) -> None:
    bodies = [
        {"prompt": prompt, "seed": seed, "max_tokens": 40, "logprobs": 2, "echo": echo}
        for seed, (prompt, echo) in enumerate(
            [("", False), ("Alice", True), (texts.PRIDE, False), (texts.ODD, True)]
        )
    ]
    alone = [generated(server, **body) for body in bodies]
    stop = threading.Event()

    def load(number: int) -> None:
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
            while not stop.is_set():
                client.post("/v1/score", json={"input": [texts.ALICE * 4] * 3})
                client.post(PATH, json={"prompt": texts.PRIDE, "n": 3 + number, "max_tokens": 9})

    crowd = [threading.Thread(target=load, args=(number,)) for number in range(3)]
    for thread in crowd:
        thread.start()
    try:
        eventually(lambda: server.metric("convlm_queue_tokens") > 0, "load")
        under_load = [generated(server, **body) for body in bodies]
        by_stream = [joined(streamed(server, **body))[0] for body in bodies]
    finally:
        stop.set()
        for thread in crowd:
            thread.join()
    assert under_load == alone
    assert by_stream == alone


def test_generated_tokens_have_the_logprobs_of_the_scored_text(
    server: Server, reference: Reference
) -> None:
    body = {"prompt": "Alice was", "seed": 3, "max_tokens": 25, "temperature": 1.5}
    choice = generated(server, **body, logprobs=400 // 40)
    ids = reference.ids("Alice was")
    for token, logprob, top in zip(
        *(choice["logprobs"][name] for name in ("tokens", "token_logprobs", "top_logprobs")),
        strict=True,
    ):
        row = reference.rows(ids[-20:])[-1]
        # several ids may share U+FFFD as their string; the logprob tells which it was
        alike = [i for i in range(len(row)) if reference.tokenizer.decode([i]) == token]
        chosen = min(alike, key=lambda i: abs(row[i] - logprob))
        assert logprob == pytest.approx(row[chosen], abs=TOLERANCE)
        assert top[token] >= logprob
        best = sorted(top.values(), reverse=True)
        assert best[0] == pytest.approx(row.max(), abs=TOLERANCE)
        assert len(top) <= 11
        ids.append(chosen)


def test_a_generated_end_symbol_finishes_with_stop(server: Server) -> None:
    body = {"prompt": "a", "seed": 1, "max_tokens": 400, "logprobs": 0}
    answer = server.ask(PATH, **body, n=20)
    ended = [choice for choice in answer["choices"] if choice["finish_reason"] == "stop"]
    assert ended
    total = 0
    for choice in answer["choices"]:
        tokens = choice["logprobs"]["tokens"]
        total += len(tokens)
        assert ("</s>" in tokens) == (choice["finish_reason"] == "stop")
        assert "<s>" not in tokens
        if choice in ended:
            assert tokens[-1] == "</s>"
            assert choice["logprobs"]["text_offset"][-1] == len(choice["text"])
            assert "</s>" not in choice["text"]
        else:
            assert len(tokens) == 400
    assert answer["usage"]["completion_tokens"] == total
    assert list(joined(streamed(server, **body, n=20)).values()) != []


# Stop strings


def cut(text: str, stops: list[str]) -> str:
    """The text before the stop string that is complete first."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))]
    return text


@pytest.mark.parametrize("seed", range(6))
def test_stop_strings_never_leak_wherever_they_lie(server: Server, seed: int) -> None:
    body = {"prompt": "Once", "seed": seed, "max_tokens": 40, "logprobs": 0}
    whole = generated(server, **body)
    text, tokens = whole["text"], whole["logprobs"]["tokens"]
    ends = [0, *accumulate(len(token) for token in tokens)]
    long = [i for i, token in enumerate(tokens) if len(token) > 2 and REPLACEMENT not in token]
    stops = [[text[-1]], [text[5:9]], [text[20:21], text[10:14]], [text[3:30]], ["never there!"]]
    stops += [[tokens[i][1:-1]] for i in long[:2]]  # inside a token
    stops += [[text[ends[i] - 1 : ends[i] + 1]] for i in (3, 10, 20)]  # across two
    stops += [[text[8:12] + "no", text[9:12]]]  # one begins sooner and is never complete
    for each in stops:
        stopped = generated(server, **body, stop=each)
        assert stopped["text"] == cut(text, each)
        found = stopped["text"] != text
        assert stopped["finish_reason"] == ("stop" if found else whole["finish_reason"])
        chunks = streamed(server, **body, stop=each)
        assert joined(chunks)[0] == stopped
        assert not any(stop in stopped["text"] for stop in each)
        count = len(stopped["logprobs"]["tokens"])
        assert stopped["logprobs"]["tokens"] == tokens[:count]
        assert all(offset < len(stopped["text"]) for offset in stopped["logprobs"]["text_offset"])


def test_a_stop_string_may_be_one_string_or_an_empty_list(server: Server) -> None:
    body = {"prompt": "Once", "seed": 0, "max_tokens": 30}
    text = generated(server, **body)["text"]
    stop = text[6:8]
    assert generated(server, **body, stop=stop) == generated(server, **body, stop=[stop])
    for nothing in ([], "", [""], None):
        assert generated(server, **body, stop=nothing)["text"] == text


def test_a_stop_string_in_the_prompt_stops_nothing(server: Server) -> None:
    body = {"prompt": "Once upon", "seed": 0, "max_tokens": 8}
    text = generated(server, **body)["text"]
    echoed = generated(server, **body, stop="Once upon", echo=True)
    assert echoed["text"] == "Once upon" + text


def test_work_behind_a_stop_string_is_not_done(server: Server) -> None:
    body = {"prompt": "Once", "seed": 0, "max_tokens": 16_384}
    text = generated(server, **{**body, "max_tokens": 10})["text"]
    answer = server.ask(PATH, **body, stop=text[2:5])
    assert answer["usage"]["completion_tokens"] <= 10
    server.assert_alive()


# Streams


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("logprobs", [None, 0, 3])
def test_chunks_join_to_the_unstreamed_answer(
    server: Server, echo: bool, logprobs: int | None
) -> None:
    body = {
        "prompt": ["Once upon", texts.ODD, ""],
        "seed": 5,
        "n": 2,
        "max_tokens": 40,
        "temperature": 1.3,
        "echo": echo,
        "logprobs": logprobs,
    }
    whole = server.ask(PATH, **body)
    chunks = streamed(server, **body)
    assert [choice["index"] for choice in whole["choices"]] == list(range(6))
    found = joined(chunks)
    assert [found[index] for index in range(6)] == whole["choices"]
    heads = {(c["id"], c["object"], c["created"], c["model"]) for c in chunks}
    assert len(heads) == 1
    for chunk in chunks:
        assert "usage" not in chunk
        (choice,) = chunk["choices"]
        assert choice["text"] or choice["finish_reason"]
        CompletionResponse.model_validate(chunk)


def test_an_unfinished_character_is_held_back(server: Server) -> None:
    # the tiny model's tokens are often parts of characters
    chunks = streamed(server, prompt="", seed=2, max_tokens=300, temperature=2)
    whole = generated(server, prompt="", seed=2, max_tokens=300, temperature=2)
    assert any(ord(character) > 127 for character in whole["text"])
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"]


def test_usage_comes_in_a_chunk_of_its_own_when_asked_for(server: Server) -> None:
    body = {"prompt": ["Once", "upon a"], "seed": 1, "n": 2, "max_tokens": 6}
    usage = server.ask(PATH, **body)["usage"]
    chunks = streamed(server, **body, stream_options={"include_usage": True})
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == usage
    assert all("usage" not in chunk for chunk in chunks[:-1])
    for options in (None, {}, {"include_usage": None}, {"include_usage": False}):
        assert streamed(server, **body, stream_options=options)[-1]["choices"]


def test_a_late_failure_is_said_in_the_stream_and_the_server_goes_on(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Session.run
    runs = 0

    def failing(self: Session, batch: FlatBatch) -> tuple[Any, Any]:
        nonlocal runs
        runs += 1
        if runs > 3:
            raise EngineError("a test's failure")
        return run(self, batch)

    monkeypatch.setattr(Session, "run", failing)
    monkeypatch.setattr(Session, "check", lambda self: None)  # else the engine ends at the third
    chunks = streamed(server, prompt="Once", max_tokens=20, seed=1)
    assert "choices" in chunks[0]
    assert chunks[-1]["error"]["code"] == "engine_error"
    response = server.post(PATH, prompt="Once", max_tokens=20, n=2)
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "engine_error"
    assert server.post("/v1/score", input="a").status_code == 500
    assert server.post("/v1/next", input="a").status_code == 500
    monkeypatch.undo()
    server.assert_alive()


# Choices and prompts


def test_choices_are_ordered_by_prompt_then_by_number(server: Server) -> None:
    prompts = ["Once", "", texts.PRIDE]
    body = {"seed": 11, "max_tokens": 12, "echo": True}
    answer = server.ask(PATH, prompt=prompts, n=3, **body)
    assert [choice["index"] for choice in answer["choices"]] == list(range(9))
    for index, choice in enumerate(answer["choices"]):
        assert choice["text"].startswith(prompts[index // 3])
    for place, prompt in enumerate(prompts):
        alone = generated(server, prompt=prompt, **body)
        assert answer["choices"][3 * place] == {**alone, "index": 3 * place}
        own = {choice["text"] for choice in answer["choices"][3 * place : 3 * place + 3]}
        assert len(own) == 3


def test_usage_counts_each_prompt_once_and_no_start_symbol(
    server: Server, reference: Reference
) -> None:
    prompts = ["Once upon a time", "", "Alice"]
    answer = server.ask(PATH, prompt=prompts, n=2, max_tokens=4, seed=0)
    counted = sum(len(reference.ids(prompt)) - 1 for prompt in prompts)
    made = answer["usage"]["completion_tokens"]
    assert answer["usage"]["prompt_tokens"] == counted
    assert answer["usage"]["total_tokens"] == counted + made
    assert made <= 24
    assert server.ask(PATH, prompt=[5, 6, 7], max_tokens=0)["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 0,
        "total_tokens": 3,
    }


@pytest.mark.parametrize("prompt", [None, "", [""]])
def test_no_prompt_means_the_start_of_a_text(server: Server, prompt: object) -> None:
    body = {"seed": 4, "max_tokens": 10, "logprobs": 0, "echo": True}
    expected = generated(server, **body)
    assert generated(server, prompt=prompt, **body) == expected
    assert len(expected["logprobs"]["tokens"]) == 10
    assert expected["logprobs"]["token_logprobs"][0] is not None


def test_one_choice_may_generate_nothing(server: Server) -> None:
    choice = generated(server, prompt="Once", max_tokens=0)
    assert choice["text"] == ""
    assert choice["finish_reason"] == "length"
    chunks = streamed(server, prompt="Once", max_tokens=0, echo=True)
    assert joined(chunks)[0]["text"] == "Once"


# Echo and logprobs


@pytest.mark.parametrize("prompt", ["Alice was beginning", texts.ODD, texts.ALICE * 4, "x", ""])
def test_echo_without_new_tokens_scores_the_prompt(
    server: Server, reference: Reference, prompt: str
) -> None:
    choice = generated(server, prompt=prompt, max_tokens=0, echo=True, logprobs=2)
    ids = reference.ids(prompt)
    lists = choice["logprobs"]
    assert choice["text"] == prompt
    assert choice["finish_reason"] == "length"
    assert {len(values) for values in lists.values()} == {len(ids) - 1}
    if not prompt:
        return
    assert lists["token_logprobs"][0] is None
    assert lists["top_logprobs"][0] is None
    expected = reference.scores(ids)[1:]
    np.testing.assert_allclose(lists["token_logprobs"][1:], expected, atol=TOLERANCE)
    (scored,) = server.ask("/v1/score", input=prompt)["data"]
    assert lists["token_logprobs"][1:] == scored["logprobs"][1:]
    for top, row in zip(lists["top_logprobs"][1:], reference.rows(ids)[1:], strict=False):
        assert max(top.values()) == pytest.approx(row.max(), abs=TOLERANCE)


@pytest.mark.parametrize("prompt", ["Alice was", texts.ODD])
def test_offsets_are_characters_of_the_choices_text(server: Server, prompt: str) -> None:
    for echo in (False, True):
        body = {"prompt": prompt, "max_tokens": 30, "seed": 9, "logprobs": 0, "echo": echo}
        choice = generated(server, **body)
        lists = choice["logprobs"]
        assert lists["text_offset"][0] == 0
        assert lists["text_offset"] == sorted(lists["text_offset"])
        for token, offset in zip(lists["tokens"], lists["text_offset"], strict=True):
            if REPLACEMENT not in token and token != "</s>":
                assert choice["text"][offset:].startswith(token)


def test_token_ids_are_taken_as_they_are(server: Server, reference: Reference) -> None:
    ids = [5, 390, 2, 2, 77, 300]
    choice = generated(server, prompt=ids, max_tokens=0, echo=True, logprobs=0)
    lists = choice["logprobs"]
    assert choice["text"] == reference.tokenizer.decode(ids)
    assert lists["tokens"] == [reference.tokenizer.decode([i]) for i in ids]
    expected = reference.scores(ids)  # no start symbol in front
    np.testing.assert_allclose(lists["token_logprobs"][1:], expected, atol=TOLERANCE)
    # with the start symbol sent by the caller, the scores of the text
    text_ids = reference.ids("Alice was beginning")
    sent = generated(server, prompt=text_ids, max_tokens=0, echo=True, logprobs=0)
    assert sent["logprobs"]["tokens"][0] == "<s>"
    np.testing.assert_allclose(
        sent["logprobs"]["token_logprobs"][1:], reference.scores(text_ids), atol=TOLERANCE
    )
    greedy = {"temperature": 0, "max_tokens": 9}
    text = generated(server, prompt="Alice was beginning", **greedy)["text"]
    assert generated(server, prompt=text_ids, **greedy)["text"] == text
    assert generated(server, prompt=[text_ids], **greedy)["text"] == text


def test_evaluation_tools_get_one_entry_more_than_the_prompt(
    server: Server, reference: Reference
) -> None:
    prompts = [reference.ids("Alice was beginning"), reference.ids("a"), [7]]
    answer = server.ask(
        PATH,
        prompt=prompts,
        model="tiny",
        temperature=0,
        max_tokens=1,
        logprobs=1,
        seed=1234,
        echo=True,
    )
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    for ids, choice in zip(prompts, answer["choices"], strict=True):
        lists = choice["logprobs"]
        assert {len(values) for values in lists.values()} == {len(ids) + 1}
        assert lists["token_logprobs"][0] is None
        assert None not in lists["token_logprobs"][1:]
        # the generated token is the greedy one: exactly the highest number listed
        assert lists["token_logprobs"][-1] == max(lists["top_logprobs"][-1].values())
        scores = reference.scores(ids)
        np.testing.assert_allclose(lists["token_logprobs"][1:-1], scores, atol=TOLERANCE)


def test_an_end_symbol_behind_an_echo_has_its_entry(server: Server, reference: Reference) -> None:
    ids = reference.ids_before_an_end()
    body = {"prompt": ids, "seed": 1, "n": 200, "max_tokens": 1, "logprobs": 1, "echo": True}
    choices = server.ask(PATH, **body)["choices"]
    ended = [choice for choice in choices if choice["finish_reason"] == "stop"]
    assert ended
    for choice in choices:
        assert {len(values) for values in choice["logprobs"].values()} == {len(ids) + 1}
    for choice in ended:
        assert choice["logprobs"]["tokens"][-1] == "</s>"
        assert choice["text"] == reference.tokenizer.decode(ids)
    found = joined(streamed(server, **body))
    assert [found[choice["index"]] for choice in choices] == choices


# Fields


def test_an_event_is_one_line_for_every_client(server: Server) -> None:
    breaks = "one\u2028two\u2029three\x85four"
    body = {"prompt": breaks, "echo": True, "max_tokens": 1, "stream": True, "logprobs": 0}
    with server.client.stream("POST", PATH, json=body) as response:
        first, blank, *_ = response.iter_lines()
    assert blank == ""
    (choice,) = json.loads(first.removeprefix("data: "))["choices"]
    assert choice["text"].startswith(breaks)


def test_an_explicit_null_means_the_default(server: Server) -> None:
    names = CompletionResponse.model_fields  # a sanity check that nothing is missing below
    assert "choices" in names
    fields = server.client.get("/openapi.json").json()["components"]["schemas"]
    nulls = dict.fromkeys(fields["CompletionRequest"]["properties"])
    answer = server.ask(PATH, **nulls)
    assert answer["usage"]["completion_tokens"] <= 16
    given = {"prompt": "Once", "seed": 3, "max_tokens": 8}
    assert generated(server, **{**nulls, **given}) == generated(server, **given)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("best_of", 2),
        ("suffix", "end"),
    ],
)
def test_a_known_field_that_is_not_there_is_refused_by_name(
    server: Server, field: str, value: object
) -> None:
    response = server.post(PATH, prompt="a", **{field: value})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == field
    assert field in error["message"]


def test_defaults_of_absent_features_are_accepted(server: Server) -> None:
    neutral = {"best_of": 1, "suffix": "", "logit_bias": {}, "presence_penalty": 0, "user": "me"}
    server.ask(PATH, prompt="a", max_tokens=1, frequency_penalty=0.0, **neutral)
    server.ask(PATH, prompt="a", max_tokens=1, best_of=2, n=2)


def test_unknown_fields_are_ignored_and_counted(server: Server) -> None:
    body = {"prompt": "Once", "seed": 2, "max_tokens": 5}
    before = server.metric("convlm_ignored_fields_total")
    extra = {"use_beam_search": False, "made_up": {"deep": [1, 2]}}
    assert generated(server, **body, **extra) == generated(server, **body)
    options = {"include_usage": True, "made_up": 1}
    streamed(server, **body, stream_options=options)
    assert server.metric("convlm_ignored_fields_total") == before + 3


def test_a_model_can_be_named(server: Server) -> None:
    server.ask(PATH, prompt="a", model="tiny", max_tokens=1)
    assert server.post(PATH, prompt="a", model="gpt-4").status_code == 404


def test_ids_and_times_are_what_clients_expect(server: Server) -> None:
    answer = server.ask(PATH, max_tokens=1)
    assert re.fullmatch(r"cmpl-[0-9a-f]{32}", answer["id"])
    assert answer["created"] > 1_700_000_000
