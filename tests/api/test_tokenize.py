"""Tokens of texts and back, in the shape that evaluation tools ask for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.api import json_stream, tokenize
from app.wire.tokenize import DetokenizeResponse, TokenizeResponse, TokenizerInfo
from tests import texts
from tests.api.conftest import Reference, Server
from tests.api.http.test_errors import GIANT, HUGE, error_of

EVERYTHING = {"return_token_strs": True, "return_token_bytes": True, "return_offsets": True}


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_a_tool_that_knows_only_names_finds_the_special_symbols(
    server: Server, reference: Reference, prefix: str
) -> None:
    info = server.client.get(f"{prefix}/tokenizer_info").json()
    TokenizerInfo.model_validate(info)
    for kind, token in (
        ("bos", reference.tokenizer.start_id),
        ("eos", reference.tokenizer.end_id),
    ):
        name = info[f"{kind}_token"]
        answer = server.ask(f"{prefix}/tokenize", prompt=name, add_special_tokens=False)
        assert answer["tokens"] == [token] == [info[f"{kind}_token_id"]]
        assert server.ask(f"{prefix}/detokenize", tokens=[token]) == {"prompt": name}
    assert info["pad_token"] is None
    assert info["unk_token"] is None
    assert info["vocab_size"] == reference.tokenizer.size


@pytest.mark.parametrize("text", [*texts.ALL, texts.ALICE * 20, "", " ", "é", "</s> ", "a\x00b"])
def test_tokens_are_those_that_are_scored(server: Server, reference: Reference, text: str) -> None:
    answer = server.ask("/v1/tokenize", prompt=text, **EVERYTHING)
    TokenizeResponse.model_validate(answer)
    assert answer["tokens"] == reference.ids(text)
    assert answer["count"] == len(answer["tokens"])
    assert answer["max_model_len"] == server.model.settings.max_request_tokens
    assert answer["token_strs"][0] == "<s>"
    assert answer["offsets"][0] == [0, 0]
    assert b"".join(bytes(piece) for piece in answer["token_bytes"]) == text.encode()
    without = server.ask("/tokenize", prompt=text, add_special_tokens=False, **EVERYTHING)
    for name in ("tokens", "token_strs", "token_bytes", "offsets"):
        assert without[name] == answer[name][1:]
    if text:
        (scored,) = server.ask("/v1/score", input=text)["data"]
        assert scored["token_ids"] == without["tokens"]
        assert scored["offsets"] == without["offsets"]


def test_only_what_is_asked_for_is_listed(server: Server) -> None:
    bare = server.ask("/tokenize", prompt="a b")
    assert set(bare) == {"count", "max_model_len", "tokens", "token_strs"}
    assert bare["token_strs"] is None  # as in vLLM, whose clients read it
    answer = server.ask("/tokenize", prompt="a b", model=None, add_special_tokens=None)
    assert answer == server.ask("/v1/tokenize", prompt="a b")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text())
def test_a_text_comes_back(server: Server, text: str) -> None:
    tokens = server.ask("/tokenize", prompt=text, add_special_tokens=False)["tokens"]
    assert server.ask("/detokenize", tokens=tokens) == {"prompt": text}


def test_special_symbols_are_named_or_left_out(server: Server, reference: Reference) -> None:
    ids = reference.ids("é", add_eos=True)
    answer = server.ask("/v1/detokenize", tokens=ids)
    DetokenizeResponse.model_validate(answer)
    assert answer == {"prompt": "<s>é</s>"}
    assert server.ask("/v1/detokenize", tokens=ids, skip_special_tokens=True) == {"prompt": "é"}
    assert server.ask("/v1/detokenize", tokens=[]) == {"prompt": ""}
    (first, *_) = server.model.tokenizer.encode("\u6211").ids.tolist()
    assert server.ask("/v1/detokenize", tokens=[first]) == {"prompt": "\ufffd"}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": None}, "prompt"),
        ("/tokenize", {"prompt": [1]}, "prompt"),
        ("/tokenize", {"prompt": "a", "add_special_tokens": 1}, "add_special_tokens"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [400]}, "tokens"),
        *(("/detokenize", {"tokens": [1, bad]}, "tokens.1") for bad in (-1, HUGE, GIANT, "a", 1.5)),
    ],
)
def test_a_bad_value_is_refused_with_its_fields_name(
    server: Server, path: str, body: dict[str, Any], param: str
) -> None:
    for place in (path, f"/v1{path}"):
        error = error_of(server.post(place, **body), 400)
        assert error["param"] == param
        assert error["message"].startswith(f"{param}: ")


def test_limits_and_models_are_checked(small: Server) -> None:
    for path, body, param in (
        ("/tokenize", {"prompt": "a " * 1500}, "prompt"),
        ("/tokenize", {"prompt": "a b c d e f " * 500}, "prompt"),
        ("/detokenize", {"tokens": [5] * 1001}, "tokens"),
    ):
        error = error_of(small.post(path, **body), 413)
        assert error["param"] == param
        assert "max_request_tokens, 1000" in error["message"]
    assert small.ask("/detokenize", tokens=[5] * 1000)
    assert error_of(small.post("/tokenize", prompt="a", model="other"), 404)["param"] == "model"
    error_of(small.client.get("/tokenizer_info?model=other"), 404)


def test_a_million_tokens_are_listed_a_slice_at_a_time(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []

    def counted(value: Any) -> bytes:
        raw = json_stream.dumps(value)
        written.append(len(raw))
        return raw

    monkeypatch.setattr(tokenize, "dumps", counted)
    wanted = {"return_token_strs": True, "return_token_bytes": True, "return_offsets": True}
    count = 100_000
    answer = server.ask("/v1/tokenize", prompt="\n" * count, add_special_tokens=False, **wanted)
    assert max(written) < 100_000
    ids = server.model.tokenizer.encode("\n" * count).ids.tolist()
    assert answer["tokens"] == ids
    assert answer["token_strs"] == [server.model.token_string(i) for i in ids]
    assert answer["token_bytes"] == [list(server.model.tokenizer.token_bytes[i]) for i in ids]
    assert [start for start, _ in answer["offsets"]][:2] == [0, answer["offsets"][0][1]]
    assert (answer["count"], len(answer["offsets"])) == (len(ids), len(ids))
