"""lm-evaluation-harness, unmodified, against the live server: its numbers are PyTorch's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import texts
from tests.api.conftest import Reference, Server

lm_eval = pytest.importorskip("lm_eval", reason="make eval installs it")

pytestmark = [
    pytest.mark.filterwarnings("default"),  # the tools' own
    pytest.mark.timeout(600),
]

TOLERANCE = 2e-3
"""Nats for a text: sums of some hundred tokens, each within 1e-4."""
QUESTIONS = [
    {"question": "Alice was beginning to get very", "choices": ["tired", "green", "of the"]},
    {"question": "It is a truth universally", "choices": ["acknowledged", "cold \u2603", "a"]},
    {"question": "Once upon a time ", "choices": ["there", "na\u00efve caf\u00e9", "!"]},
    {"question": "", "choices": ["The", "of", "\u6211\u4eec"]},
]
DOCUMENTS = [texts.ALICE, texts.ODD.replace("</s><s>", ""), texts.PRIDE * 12, "x"]
"""Without names of special symbols, which Hugging Face's tokenizers read as these."""
PROMPTS = ["Alice was", "It is a truth universally", "caf\u00e9 \U0001f642 and"]
NEW_TOKENS = 12
TASKS: dict[str, dict[str, Any]] = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{0}}",
        "metric_list": [{"metric": "acc"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
    },
    "until": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "",
        "generation_kwargs": {
            "until": ["\n\n", "e"],
            "max_gen_toks": NEW_TOKENS,
            "temperature": 0,
            "do_sample": False,
        },
        "metric_list": [{"metric": "exact_match"}],
    },
}
ROWS = {
    "choices": QUESTIONS,
    "rolling": [{"text": text} for text in DOCUMENTS],
    "until": [{"text": text} for text in PROMPTS],
}
MODES: dict[str, dict[str, Any]] = {
    "huggingface": {"tokenizer_backend": "huggingface", "batch_size": 3},
    "huggingface-bos": {"tokenizer_backend": "huggingface", "add_bos_token": True},
    # the harness takes a start symbol of id 0 for none
    "remote": {"tokenizer_backend": "remote", "custom_prefix_token_id": 0, "num_concurrent": 4},
    "text": {"tokenizer_backend": "remote", "tokenized_requests": False, "batch_size": 2},
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tasks with their data."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, task in TASKS.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]))
        facts = {
            "task": f"convlm_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {"test": str(data)},
                "cache_dir": str(folder / "cache"),
            },
            "test_split": "test",
            **task,
        }
        (folder / f"{name}.yaml").write_text(json.dumps(facts))  # which is YAML too
    return folder


def answers(
    server: Server, folder: Path, tasks: Path, mode: str, name: str
) -> tuple[list[list[Any]], dict[str, float]]:
    """What the harness got for each document of a task, in order, and its metrics."""
    from lm_eval.tasks import TaskManager

    found = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": "tiny",
            "base_url": f"{server.url}/v1/completions",
            "tokenizer": str(folder) if mode.startswith("huggingface") else None,
            "max_length": 100_000,
            "max_retries": 1,
            **MODES[mode],
        },
        tasks=[f"convlm_{name}"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
    )
    samples = sorted(found["samples"][f"convlm_{name}"], key=lambda sample: sample["doc_id"])
    metrics = {key.split(",")[0]: v for key, v in found["results"][f"convlm_{name}"].items()}
    return [sample["resps"] for sample in samples], metrics


def start(reference: Reference, mode: str) -> list[int]:
    """What is in front of a prompt: the start symbol, where the harness lets it be."""
    return [reference.tokenizer.start_id] if mode in ("huggingface-bos", "text") else []


def scored(reference: Reference, ids: list[int], count: int) -> tuple[float, bool]:
    """The log-probability of the last `count` tokens, and whether each is the likeliest."""
    rows = reference.rows(ids)[-count - 1 : -1]
    last = np.array(ids[-count:])
    return float(reference.scores(ids)[-count:].sum()), bool((rows.argmax(1) == last).all())


@pytest.mark.parametrize("mode", MODES)
def test_multiple_choice_is_decided_by_pytorchs_numbers(
    server: Server, reference: Reference, tiny_folder: Path, tasks: Path, mode: str
) -> None:
    found, metrics = answers(server, tiny_folder, tasks, mode, "choices")
    right = 0
    for question, resps in zip(QUESTIONS, found, strict=True):
        context = str(question["question"])
        kept = context.rstrip()
        expected = []
        for choice in question["choices"]:
            whole = reference.ids(f"{context} {choice}")[1:]
            count = len(whole) - len(reference.ids(kept)[1:])
            front = start(reference, mode) if context else [reference.tokenizer.start_id]
            expected.append(scored(reference, [*front, *whole], count))
        right += max(range(3), key=lambda n: expected[n][0]) == 0
        if mode == "text" and not context:  # the harness writes the start symbol as text
            continue
        got = [(float(score), greedy in (True, "True")) for ((score, greedy),) in resps]
        assert [greedy for _, greedy in got] == [greedy for _, greedy in expected]
        np.testing.assert_allclose(
            [score for score, _ in got], [score for score, _ in expected], atol=TOLERANCE
        )
    if mode != "text":
        assert metrics["acc"] == pytest.approx(right / len(QUESTIONS))


@pytest.mark.parametrize("mode", ["huggingface", "remote"])
def test_rolling_log_likelihoods_are_pytorchs(
    server: Server, reference: Reference, tiny_folder: Path, tasks: Path, mode: str
) -> None:
    found, metrics = answers(server, tiny_folder, tasks, mode, "rolling")
    expected = [float(reference.scores(reference.ids(text)).sum()) for text in DOCUMENTS]
    got = [float(score) for ((score,),) in found]
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=TOLERANCE)
    size = sum(len(text.encode()) for text in DOCUMENTS)
    assert metrics["bits_per_byte"] == pytest.approx(-sum(expected) / size / math.log(2), rel=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_generated_text_is_pytorchs_up_to_a_stop_string(
    server: Server, reference: Reference, tiny_folder: Path, tasks: Path, mode: str
) -> None:
    found, _ = answers(server, tiny_folder, tasks, mode, "until")
    for prompt, resps in zip(PROMPTS, found, strict=True):
        ids = [*start(reference, mode), *reference.ids(prompt)[1:]]
        new: list[int] = []
        while len(new) < NEW_TOKENS and reference.tokenizer.end_id not in new:
            row = reference.rows([*ids, *new])[-1].copy()
            row[reference.tokenizer.start_id] = -np.inf
            new.append(int(row.argmax()))
        text = reference.tokenizer.decode(new)
        cuts = [text.find(stop) for stop in ("\n\n", "e") if stop in text]
        assert resps == [[text[: min(cuts, default=len(text))]]]
