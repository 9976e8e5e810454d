"""BLiMP through a live server, against sums of /v1/score."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli.main import cli
from app.client.async_client import AsyncClient
from app.client.blimp import Judged, Pair, accuracy, judge, read, table
from app.client.errors import ClientError
from tests.api.conftest import Server

pytestmark = pytest.mark.anyio
SENTENCES = [
    ("The cats annoy Tim.", "The cats annoys Tim.", "regular_plural", "agreement", "morphology"),
    (
        "Alice was beginning to tire.",
        "Alice were beginning to tire.",
        "irregular",
        "agreement",
        "m",
    ),
    ("Many girls insulted themselves.", "Many girls insulted herself.", "anaphor", "binding", "s"),
    ("Who should Derek hug?", "Who should Derek hug him?", "regular_plural", "agreement", "m"),
    ("The same sentence.", "The same sentence.", "anaphor", "binding", "s"),
]


def line(good: str, bad: str, paradigm: str, category: str, field: str) -> str:
    """A line as the data set has it."""
    return json.dumps(
        {
            "sentence_good": good,
            "sentence_bad": bad,
            "field": field,
            "linguistics_term": category,
            "UID": paradigm,
            "simple_LM_method": True,
            "pairID": "0",
        }
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Five pairs, the last a tie, with a blank line."""
    path = tmp_path / "blimp.jsonl.xz"
    path.write_bytes(lzma.compress("\n\n".join(line(*pair) for pair in SENTENCES).encode()))
    return path


def direct(server: Server, sentence: str) -> float:
    """The sum of a sentence's log-probabilities, asked for alone."""
    (found,) = server.ask("/v1/score", input=sentence)["data"]
    assert not found["eos_scored"]
    return sum(found["logprobs"])


async def test_a_pair_is_right_if_the_good_sentence_is_the_more_probable(
    server: Server, file: Path
) -> None:
    done: list[int] = []
    async with AsyncClient(server.url) as client:
        judged = await judge(client, read(file), done.append)
    assert sum(done) == len(SENTENCES)
    sums = [(direct(server, good), direct(server, bad)) for good, bad, *_ in SENTENCES]
    for one, (good, bad), given in zip(judged, sums, SENTENCES, strict=True):
        assert (one.pair.good, one.pair.paradigm) == (given[0], given[2])
        assert one.good_logprob == pytest.approx(good, abs=1e-5)
        assert one.bad_logprob == pytest.approx(bad, abs=1e-5)
        assert one.right == (good > bad)
    assert not judged[4].right
    right = [good > bad for good, bad in sums]
    shares = [(right[0] + right[3]) / 2, right[1], (right[2] + right[4]) / 2]
    assert accuracy(judged) == pytest.approx(sum(shares) / 3)


def judged(paradigm: str, category: str, good: float, bad: float) -> Judged:
    """A pair of a paradigm with the log-probabilities given."""
    pair = Pair.model_validate_json(line("a", "b", paradigm, category, "syntax/semantics"))
    return Judged(pair, good, bad, unknown=False)


def test_a_category_is_the_mean_of_its_paradigms_not_of_their_pairs() -> None:
    some = [
        judged("many", "first", -1, -2),
        judged("many", "first", -1, -2),
        judged("many", "first", -1, -2),
        judged("few", "first", -2, -1),
        judged("other", "second", -1, -1),
    ]
    assert accuracy(some[:4]) == 0.5
    assert accuracy(some) == pytest.approx(1 / 3)
    rows = table(some).splitlines()
    assert rows[2:] == [
        "| **all** | 5 | 33.3 |",
        "| field: syntax_semantics | 5 | 33.3 |",
        "| **first** | 4 | 50.0 |",
        "| few | 1 | 0.0 |",
        "| many | 3 | 100.0 |",
        "| **second** | 1 | 0.0 |",
        "| other | 1 | 0.0 |",
        "",
        "Ties, counted as wrong: 1. Pairs with unknown words: 0.",
    ]


@pytest.mark.parametrize(
    "bad", ["no json", "{}", '{"sentence_good": ""}', "[]", line("a", "", "p", "c", "f")]
)
def test_a_bad_line_is_named(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(line(*SENTENCES[0]) + "\n" + bad + "\n", encoding="utf-8")
    with pytest.raises(ClientError, match=r"bad\.jsonl, line 2: not a pair of BLiMP: ") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_the_command_prints_a_table(server: Server, file: Path) -> None:
    done = CliRunner().invoke(cli, ["blimp", str(file), "--url", server.url, "--limit", "3"])
    assert done.exit_code == 0, done.output
    assert "| **all** | 3 |" in done.stdout


def test_the_command_says_in_a_line_what_is_wrong(tmp_path: Path, file: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    for arguments, message in (
        ([str(tmp_path / "none.jsonl")], "none.jsonl: No such file"),
        ([str(tmp_path)], "Is a directory"),
        ([str(empty)], "has no pair"),
        ([str(file), "--url", "http://127.0.0.1:9"], "no answer from http://127.0.0.1:9"),
    ):
        done = CliRunner().invoke(cli, ["blimp", *arguments])
        assert done.exit_code == 1
        assert done.stdout == ""
        assert message in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
