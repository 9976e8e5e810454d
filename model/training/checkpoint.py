"""Checkpoints of a training run: its last and its best state, with its configuration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from model.architecture.gcnn import GCNN, build
from model.architecture.lstm import LSTM
from model.core.config import complaint
from model.core.outputs import atomic_file
from model.training.recipe import RunConfig

LAST = "last.pt"
BEST = "best.pt"

State = dict[str, Any]
"""The contents of a checkpoint.

config: the run's `RunConfig` as JSON. model: its weights. step: the number of updates. best: the
lowest validation loss, in nats per token. rate: a factor on the learning rate. tokenizer: its
fingerprint, the first known one of the initial model, the train and the valid corpus; None if none
is known; older checkpoints lack it. `last.pt` also has the states of the optimizers, and the
averaged weights if there are any.
"""
_FIELDS = {"config": str, "model": dict, "step": int}


def save(path: Path, state: State) -> None:
    """Writes a state completely or not at all: a kill leaves the previous one. Raises OSError."""
    with atomic_file(path, exclusive=True) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # PyTorch hides the error of a full disk
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load(path: Path) -> State:
    """Reads a state onto the CPU. Raises FileNotFoundError, ValueError."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: no checkpoint has been written yet")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch raises many types for a broken file, with long advice
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise ValueError(f"{path} is not a checkpoint: {reason}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} is not a checkpoint of `convlm train`")
    return state


def config_of(path: Path, state: State) -> RunConfig:
    """The configuration of a checkpoint's run. Raises ValueError for other files."""
    for name, kind in _FIELDS.items():
        if not isinstance(state.get(name), kind):
            raise ValueError(f"{path} is not a checkpoint of `convlm train`: it has no {name!r}")
    try:
        return RunConfig.model_validate_json(state["config"])
    except ValidationError as error:
        raise ValueError(f"{path} is of another version: {complaint(error)}") from None


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    """Converts what PyTorch raises for wrong weights to a ValueError that names the checkpoint."""
    try:
        yield
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} does not have what its model needs: {reason}") from error


def load_model(path: Path) -> tuple[GCNN | LSTM, RunConfig, State]:
    """The model of a checkpoint, in evaluation mode, its run's configuration and its state.

    Raises FileNotFoundError, ValueError.
    """
    state = load(path)
    config = config_of(path, state)
    model = build(config.model, config.start_id)
    with restoring(path):
        model.load_state_dict(state["model"])
    return model.eval(), config, state
