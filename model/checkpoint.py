"""A training run's folder: its configuration, its last and its best state."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from model.architectures import build
from model.baselines.lstm import LSTM
from model.gcnn import GCNN
from model.train_config import RunConfig

LAST = "last.pt"
BEST = "best.pt"


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes a state whole or not at all: a kill leaves the one before."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load(path: Path) -> dict[str, Any]:
    """Reads a state onto the CPU. Raises FileNotFoundError, ValueError."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: no checkpoint has been written yet")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several kinds for a broken file, with long advice
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise ValueError(f"{path} is not a checkpoint: {reason}") from error
    return state


def load_model(path: Path) -> tuple[GCNN | LSTM, RunConfig, dict[str, Any]]:
    """The model of a checkpoint, in evaluation mode, its run's configuration and its state.

    Raises FileNotFoundError, ValueError.
    """
    state = load(path)
    if not (isinstance(state, dict) and {"config", "model"} <= state.keys()):
        raise ValueError(f"{path} is not a checkpoint of `convlm train`")
    config = RunConfig.model_validate_json(state["config"])
    model = build(config.model, config.start_id)
    model.load_state_dict(state["model"])
    return model.eval(), config, state
