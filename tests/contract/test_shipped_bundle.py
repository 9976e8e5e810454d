"""The shipped model, over HTTP, against PyTorch with the weights that the bundle stores."""

from __future__ import annotations

import math
from pathlib import Path

import httpx
import numpy as np
import pytest

from app.settings import Settings
from model.architecture.gcnn import GCNN
from model.core import bundle
from model.evaluation.scoring import logprobs
from model.training.restore import from_bundle

HELD_OUT = (Path(__file__).parent.parent / "data" / "peter-pan-1911.txt").read_text()
TEXTS = 200


@pytest.fixture(scope="module")
def shipped() -> bundle.Bundle:
    return bundle.load(Settings().bundle)


@pytest.fixture(scope="module")
def pytorch(shipped: bundle.Bundle) -> GCNN:
    """A model with the weights that are in the graph, in float32."""
    return from_bundle(shipped)


def held_out(shipped: bundle.Bundle) -> list[str]:
    """Passages of 1 to 2,000 tokens of a book whose author the training data does not have."""
    rng = np.random.default_rng(0)
    cuts = shipped.tokenizer.encode(HELD_OUT).cuts
    lengths = np.unique(np.concatenate([[1, 2000], np.geomspace(1, 2000, TEXTS)]).astype(int))
    lengths = np.concatenate([lengths, rng.choice(lengths[:80], TEXTS - len(lengths))])
    begins = [int(rng.integers(0, len(cuts) - length)) for length in lengths]
    return [HELD_OUT[cuts[b] : cuts[b + n]] for b, n in zip(begins, lengths, strict=True)]


def test_log_probabilities_equal_pytorchs(
    shipped: bundle.Bundle, pytorch: GCNN, shipped_url: str
) -> None:
    texts = held_out(shipped)
    assert len(texts) == TEXTS
    with httpx.Client(base_url=shipped_url, timeout=300) as client:
        answer = client.post("/v1/score", json={"input": texts}).raise_for_status().json()
    counts = [entry["token_count"] for entry in answer["data"]]
    assert min(counts) == 1
    assert max(counts) >= 1990
    worst = 0.0
    for text, entry in zip(texts, answer["data"], strict=True):
        encoded = shipped.tokenizer.encode(text).ids
        ids = np.concatenate([[shipped.config.start_id], encoded]).astype(np.int64)
        assert entry["token_ids"] == ids[1:].tolist()
        worst = max(worst, float(np.abs(logprobs(pytorch, ids) - entry["logprobs"]).max()))
    print(f"largest difference over {sum(counts)} tokens: {worst:.2e} nats")
    assert worst < 1e-4


def test_the_default_precision_costs_at_most_two_thousandths_of_perplexity(
    shipped: bundle.Bundle, shipped_url: str, default_url: str
) -> None:
    losses = {}
    for url in (shipped_url, default_url):
        with httpx.Client(base_url=url, timeout=300) as client:
            body = {"input": held_out(shipped), "detail": "totals"}
            answer = client.post("/v1/score", json=body).raise_for_status().json()
        losses[url] = -answer["totals"]["logprob_sum"] / answer["totals"]["token_count"]
        print(f"{answer['system_fingerprint']}: {losses[url]:.5f} nats per token")
    assert math.exp(losses[default_url] - losses[shipped_url]) < 1.002


def test_the_model_has_learned_english(shipped_url: str) -> None:
    with httpx.Client(base_url=shipped_url, timeout=300) as client:

        def ranked(text: str, *candidates: str) -> str:
            body = {"input": text, "candidates": candidates}
            answer = client.post("/v1/next", json=body).raise_for_status().json()
            return str(answer["data"][0]["token"])

        assert ranked("He was one of the", " first", " was") == " first"
        assert ranked("It is the capital", " of", " he") == " of"
        assert ranked("She opened the", " door", " went") == " door"
        scored = client.post(
            "/v1/score", json={"input": HELD_OUT[:4000], "detail": "totals"}
        ).raise_for_status()
        assert scored.json()["totals"]["bits_per_byte"] < 2.0
        prompt = "She looked at him and said"
        body = {"prompt": prompt, "max_tokens": 60, "temperature": 0.7, "seed": 1}
        text = client.post("/v1/completions", json=body).raise_for_status().json()
        words = text["choices"][0]["text"].split()
        known = set(HELD_OUT.lower().split())
        common = [word for word in words if word.lower().strip(".,;:\"'") in known]
        assert len(common) > len(words) / 2
