"""LAMBADA through a live server, against other endpoints' answers about the same words."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from app.cli.main import cli
from app.client.async_client import AsyncClient
from app.client.errors import ClientError
from app.client.lambada import Passage, Prediction, accuracy, perplexity, predict, read, table
from tests import texts
from tests.api.conftest import Server

pytestmark = pytest.mark.anyio
PASSAGES = [
    "Alice was beginning to get very tired of sitting by her sister",
    'She looked, and said: "Oh dear! I shall be late, Rabbit',
    "She held on to the table.\n\nAlice",
    "There was a na\u00efve caf\u00e9 behind the \u201ccaf\u00e9",
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Passages in natural writing; one ends with white space."""
    path = tmp_path / "lambada.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*PASSAGES, "a b \n"]))
    return path


def foreseeable(server: Server) -> Passage:
    """A passage whose last word is what the model goes on with, by any tokens."""
    for line in texts.ALICE.split():
        prompt = f"Alice {line}"
        answer = server.ask("/v1/completions", prompt=prompt, max_tokens=1, temperature=0)
        going_on = answer["choices"][0]["text"]
        if going_on.strip() and not going_on[1:].strip().count(" ") and going_on[0] == " ":
            return Passage(prompt + going_on, len(prompt) + 1)
    raise AssertionError("no word is foreseen")


async def test_the_last_word_has_the_log_probability_of_a_continuation(
    server: Server, file: Path
) -> None:
    passages = read(file)
    async with AsyncClient(server.url) as client:
        found = await predict(client, passages)
    ends = [" sister", " Rabbit", "Alice", " \u201ccaf\u00e9", " b"]
    for passage, one, end in zip(passages, found, ends, strict=True):
        before = passage.text[: passage.tokens_from]
        assert passage.text == before + end
        (candidate,) = server.ask("/v1/next", input=before, candidates=[end])["data"]
        assert one.logprob == pytest.approx(candidate["logprob"], abs=1e-4)
    mean = np.mean([one.logprob for one in found])
    assert perplexity(found) == pytest.approx(math.exp(-mean))


async def test_a_word_is_right_if_greedy_decoding_writes_it(server: Server, file: Path) -> None:
    passages = [*read(file), foreseeable(server)]
    async with AsyncClient(server.url) as client:
        found = await predict(client, passages)
    for passage, one in zip(passages, found, strict=True):
        before, end = passage.text[: passage.tokens_from], passage.text[passage.tokens_from :]
        (scored,) = server.ask("/v1/score", input=end, context=before)["data"]
        answer = server.ask(
            "/v1/completions", prompt=before, max_tokens=scored["token_count"], temperature=0
        )
        assert one.right == (answer["choices"][0]["text"] == end)
    assert found[-1].right
    assert accuracy(found) == sum(one.right for one in found) / len(found)


async def test_only_all_tokens_foreseen_make_a_word_right(server: Server) -> None:
    first = foreseeable(server)
    longer = Passage(first.text + "zzz", first.word_start)
    async with AsyncClient(server.url) as client:
        found = await predict(client, [first, longer])
    assert [one.right for one in found] == [True, False]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            "`` no , '' she said , `` i do n't care about signs",
            '"no," she said, "i don\'t care about signs',
        ),
        ("the boys ' hats -lrb- all -rrb- are jane 's own", "the boys' hats (all) are jane's own"),
        ("it 's $ 5 ... `` shane", "it's $5... \"shane"),
        ("look at `` me '", "look at \"me '"),
    ],
)
def test_the_plain_form_is_joined_to_writing(tmp_path: Path, line: str, text: str) -> None:
    path = tmp_path / "plain.txt"
    path.write_text(line + "\n")
    (passage,) = read(path)
    assert passage.text == text
    assert passage.text[passage.word_start :] == line.split()[-1]


@pytest.mark.parametrize("bad", ["no json", "{}", '{"text": 3}', '{"text": "word"}', "[]"])
def test_a_bad_line_is_named(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"text": "two words"}) + "\n" + bad + "\n")
    with pytest.raises(
        ClientError, match=r"bad\.jsonl, line 2: not a passage of LAMBADA: "
    ) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_the_table_has_both_figures() -> None:
    found = [Prediction(-1.0, True, False), Prediction(-3.0, False, True)]
    assert table(found).splitlines()[2:] == [
        "| last word | 2 | 7.39 | 50.00 |",
        "",
        "Passages with unknown words: 1.",
    ]
    assert "too large" in table([Prediction(-1e6, False, False)])


def test_the_command_prints_a_table(server: Server, file: Path) -> None:
    done = CliRunner().invoke(cli, ["lambada", str(file), "--url", server.url, "--limit", "2"])
    assert done.exit_code == 0, done.output
    assert "| last word | 2 |" in done.stdout


def test_the_command_says_in_a_line_what_is_wrong(tmp_path: Path, file: Path) -> None:
    for arguments, message in (
        ([str(tmp_path / "none.jsonl")], "none.jsonl: No such file"),
        ([str(file), "--url", "http://127.0.0.1:9"], "no answer from http://127.0.0.1:9"),
    ):
        done = CliRunner().invoke(cli, ["lambada", *arguments])
        assert done.exit_code == 1
        assert done.stdout == ""
        assert message in done.stderr.splitlines()[-1]
