"""The `openai` package, as a user has it, against the live server."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.api.conftest import Server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    """A client that retries nothing, so that every error is seen."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "convlm"


def test_a_completion_has_text_reason_and_usage(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="Once upon", max_tokens=8, seed=1)
    (choice,) = answer.choices
    assert choice.text
    assert choice.finish_reason == "length"
    assert choice.logprobs is None
    assert answer.object == "text_completion"
    assert answer.system_fingerprint
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8


def test_a_stream_gives_the_same_text(client: openai.OpenAI) -> None:
    body = {"model": "tiny", "prompt": "Once upon", "max_tokens": 30, "seed": 2}
    whole = client.completions.create(**body)
    options = {"include_usage": True}
    chunks = list(client.completions.create(**body, stream=True, stream_options=options))
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_a_stream_may_be_left(client: openai.OpenAI, server: Server) -> None:
    with client.completions.create(
        model="tiny", prompt="Once", max_tokens=16_000, stream=True
    ) as stream:
        next(iter(stream))
    server.assert_alive()


def test_several_choices_and_prompts_come_in_order(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt=["Once", "upon"], n=2, max_tokens=4, echo=True, seed=3
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text[:4] for choice in answer.choices] == ["Once", "Once", "upon", "upon"]


def test_echo_with_logprobs_scores_the_prompt(client: openai.OpenAI, server: Server) -> None:
    text = "Alice was beginning to get very tired"
    answer = client.completions.create(
        model="tiny", prompt=text, max_tokens=0, echo=True, logprobs=2
    )
    found = answer.choices[0].logprobs
    (scored,) = server.ask("/v1/score", input=text)["data"]
    assert found is not None
    assert found.tokens == scored["tokens"]
    assert found.text_offset == [start for start, _ in scored["offsets"]]
    assert found.token_logprobs is not None
    assert found.token_logprobs[0] is None
    assert found.token_logprobs[1:] == scored["logprobs"][1:]
    assert found.top_logprobs is not None
    assert all(len(top) >= 2 for top in found.top_logprobs[1:])


def test_token_ids_are_a_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt=[[5, 6, 7], [8]], max_tokens=1, logprobs=0, echo=True
    )
    assert [len(choice.logprobs.tokens) for choice in answer.choices] == [4, 2]


def test_a_stream_has_logprobs_in_its_chunks(client: openai.OpenAI) -> None:
    body = {"model": "tiny", "prompt": "caf\u00e9", "max_tokens": 30, "seed": 2, "logprobs": 2}
    (whole,) = client.completions.create(**body, echo=True).choices
    chunks = list(client.completions.create(**body, echo=True, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.text
    lists = [chunk.choices[0].logprobs for chunk in chunks]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        found = [entry for part in lists for entry in getattr(part, name)]
        assert found == getattr(whole.logprobs, name)


def test_biases_penalties_and_stops_are_taken(client: openai.OpenAI) -> None:
    body = {"model": "tiny", "prompt": "Once", "max_tokens": 12, "temperature": 0}
    (plain,) = client.completions.create(**body).choices
    (stopped,) = client.completions.create(**body, stop=[plain.text[4:7], "x" * 20]).choices
    assert stopped.text == plain.text[: plain.text.find(plain.text[4:7])]
    assert stopped.finish_reason == "stop"
    (biased,) = client.completions.create(**body, logit_bias={"77": 100}, logprobs=0).choices
    assert len(set(biased.logprobs.tokens)) == 1
    (varied,) = client.completions.create(
        **body, presence_penalty=-2, frequency_penalty=-2, best_of=1, user="me"
    ).choices
    assert varied.text != plain.text


def test_fields_beyond_openais_go_in_and_out(client: openai.OpenAI) -> None:
    extra = {"prompt_logprobs": 2, "return_token_ids": True, "min_p": 0.1}
    (choice,) = client.completions.create(
        model="tiny", prompt="Alice was", max_tokens=4, seed=1, extra_body=extra
    ).choices
    assert len(choice.token_ids) == 4
    assert choice.prompt_logprobs[0] is None
    assert len(choice.prompt_logprobs) == len(choice.prompt_token_ids)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"prompt": [10**9]}, "prompt"),
        ({"logit_bias": {"50": 101}}, "logit_bias"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"stream": True, "top_p": 0}, "top_p"),
    ],
)
def test_a_bad_request_raises_with_the_fields_name(
    client: openai.OpenAI, body: dict[str, object], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"model": "tiny", "prompt": "a", **body})
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert param in caught.value.message


def test_a_size_over_a_limit_raises_with_status_413(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(model="tiny", prompt="a", max_tokens=1_000_000)
    assert caught.value.status_code == 413
    assert caught.value.param == "max_tokens"
    assert caught.value.code == "request_too_large"


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="gpt-4", prompt="a")
    assert caught.value.param == "model"
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_chat_is_not_found_and_says_what_to_use(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="/v1/completions"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a"}])


def test_a_response_and_an_error_have_the_requests_name(client: openai.OpenAI) -> None:
    body = {"model": "tiny", "prompt": "a", "max_tokens": 1}
    answer = client.completions.create(**body)
    assert answer._request_id
    named = client.completions.create(**body, extra_headers={"x-request-id": "my-name"})
    assert named._request_id == "my-name"
    with client.completions.with_streaming_response.create(**body, stream=True) as stream:
        assert stream.request_id
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4")
    assert caught.value.request_id
