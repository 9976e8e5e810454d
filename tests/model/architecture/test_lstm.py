"""The LSTM's graph computes what PyTorch's LSTM does, whole and in pieces."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.architecture.lstm import LSTM
from model.baselines.lstm_graph import round_weights
from model.core.config import LSTMConfig
from model.evaluation.scoring import logprobs
from model.report.scorers import LSTMScorer

PLAIN = LSTMConfig(vocabulary=300, embedding=24, lstm=(40,))
CONFIGS = {
    "full": PLAIN,
    "full with a head": PLAIN.model_copy(update={"head_channels": 20}),
    "tied": PLAIN.model_copy(update={"head_channels": 24, "tied": True}),
    "adaptive": PLAIN.model_copy(update={"cutoffs": (40, 120)}),
    "two layers": PLAIN.model_copy(update={"lstm": (32, 48), "cutoffs": (40,)}),
}


def model_of(config: LSTMConfig) -> LSTM:
    """A random model, confident enough for a wrong gate to show."""
    torch.manual_seed(3)
    model = LSTM(config, start_id=0)
    with torch.no_grad():
        model.embedding.weight.mul_(10)
        for layer in model.layers:
            for name, parameter in layer.named_parameters():
                if name.startswith("bias"):
                    parameter.normal_()
    return round_weights(model)


def ids(length: int, seed: int = 0) -> np.ndarray:
    """A text: the start symbol, then random tokens."""
    text = np.random.default_rng(seed).integers(1, 300, length)
    text[0] = 0
    return text


@pytest.mark.parametrize("name", CONFIGS)
def test_the_graph_equals_pytorch(name: str) -> None:
    model = model_of(CONFIGS[name])
    scorer = LSTMScorer(model, threads=1)
    text = ids(90)
    found = scorer.one(text[:-1], text[1:], rows=1000)
    np.testing.assert_allclose(found, logprobs(model, text), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_texts_side_by_side_score_as_alone(name: str) -> None:
    model = model_of(CONFIGS[name])
    scorer = LSTMScorer(model, threads=1)
    texts = np.stack([ids(30, seed) for seed in range(7)])
    found = scorer.many(texts[:, :-1], texts[:, 1:], texts=3, rows=12)
    expected = np.stack([logprobs(model, text) for text in texts])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_pieces_with_a_carried_state_equal_the_whole(rows: int) -> None:
    scorer = LSTMScorer(model_of(CONFIGS["two layers"]), threads=1)
    text = ids(100)
    whole = scorer.one(text[:-1], text[1:], rows=1000)
    pieces = scorer.one(text[:-1], text[1:], rows=rows)
    np.testing.assert_allclose(pieces, whole, rtol=0, atol=1e-5)


def test_a_start_symbol_begins_with_a_zero_state() -> None:
    model = model_of(CONFIGS["adaptive"])
    scorer = LSTMScorer(model, threads=1)
    one, two = ids(40, 1), ids(50, 2)
    both = np.concatenate([one, two])
    found = scorer.one(both[:-1], both[1:], rows=16)
    np.testing.assert_allclose(found[:39], logprobs(model, one), rtol=0, atol=1e-4)
    np.testing.assert_allclose(found[40:], logprobs(model, two), rtol=0, atol=1e-4)
    np.testing.assert_allclose(found, logprobs(model, both), rtol=0, atol=1e-4)
