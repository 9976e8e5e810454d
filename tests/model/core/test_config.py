"""The configuration states every model of the paper; its sums are those that are known of them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from model.core.config import ModelConfig
from model.core.gates import GATES, GateName


def paper_model(name: str, vocabulary: int | None = None) -> ModelConfig:
    fields = tomllib.loads(Path(f"model/recipes/{name}.toml").read_text())["model"]
    return ModelConfig.model_validate(fields | ({"vocabulary": vocabulary} if vocabulary else {}))


@pytest.mark.parametrize(
    ("name", "receptive_field", "state_kib"),
    [
        ("gcnn-14", 47, 155),
        ("gcnn-14b", 57, 150),
        ("gcnn-8b", 25, 18),
        ("gcnn-8", 25, 84),
        ("gcnn-9", 28, 85),
        ("gcnn-13", 40, 193),
    ],
)
def test_receptive_field_and_state_are_those_of_the_paper(
    name: str, receptive_field: int, state_kib: int
) -> None:
    config = paper_model(name)
    assert config.receptive_field == receptive_field
    assert round(config.state_floats * 4 / 1024) == state_kib


@pytest.mark.parametrize(
    ("name", "vocabulary", "millions"),
    [("gcnn-14", 267_744, 229.3), ("gcnn-14b", 793_472, 428.4), ("gcnn-14b", 221_452, 318.6)],
)
def test_parameter_totals_are_the_published_ones(
    name: str, vocabulary: int, millions: float
) -> None:
    assert round(paper_model(name, vocabulary).parameters() / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("gcnn-14", 102.2),
        ("gcnn-14b", 163.0),
        ("gcnn-8b", 13.8),
        ("gcnn-8", 52.1),
        ("gcnn-9", 47.0),
        ("gcnn-13", 167.4),
    ],
)
def test_trunk_multiply_adds_are_those_of_the_paper(name: str, millions: float) -> None:
    config = paper_model(name)
    assert abs(config.trunk_macs() / 1e6 - millions) < 0.18  # the figures include biases and gains


@pytest.mark.parametrize(
    "change",
    [
        {"cutoffs": (10, 5)},
        {"cutoffs": (2, 50)},
        {"cutoffs": (100,)},
        {"cutoffs": (10, 200)},
        {"tied": True, "head_channels": 3},
        {"gate": "sigmoid"},
        {"blocks": ()},
        {"unknown": 1},
    ],
)
def test_a_contradictory_configuration_is_refused(change: dict[str, object]) -> None:
    good = {"vocabulary": 100, "embedding": 8, "blocks": [{"layers": [[3, 8]]}]}
    ModelConfig.model_validate(good)
    with pytest.raises(ValidationError):
        ModelConfig.model_validate(good | change)


def test_every_name_of_a_gate_has_its_gate() -> None:
    assert list(GATES) == list(get_args(GateName))
