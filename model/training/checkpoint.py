"""A training run's folder: its configuration, its last and its best state."""

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
_REASON_CHARACTERS = 200


State = dict[str, Any]
"""What a checkpoint holds.

config: the run's `RunConfig` as JSON. model: its weights. step: updates done. best: the lowest
validation loss, in nats per token. rate: a factor on the learning rate. tokenizer: a fingerprint,
the first known one of what was trained on, the train and the valid corpus; None if none is known,
older checkpoints lack it. `last.pt` also has the states of the optimizers, and of the average of
the weights if there is one.
"""
_FIELDS = {"config": str, "model": dict, "step": int}


def save(path: Path, state: State) -> None:
    """Writes a state whole or not at all: a kill leaves the one before. Raises OSError."""
    with atomic_file(path, exclusive=True) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch says nothing of a disk that is full
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load(path: Path) -> State:
    """Reads a state onto the CPU. Raises FileNotFoundError, ValueError."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: no checkpoint has been written yet")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several kinds for a broken file, with long advice
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise ValueError(f"{path} is not a checkpoint: {reason}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} is not a checkpoint of `convlm train`")
    return state


def config_of(path: Path, state: State) -> RunConfig:
    """The configuration of a checkpoint's run. Raises ValueError for a file of another kind."""
    for name, kind in _FIELDS.items():
        if not isinstance(state.get(name), kind):
            raise ValueError(f"{path} is not a checkpoint of `convlm train`: it has no {name!r}")
    try:
        return RunConfig.model_validate_json(state["config"])
    except ValidationError as error:
        raise ValueError(f"{path} is of another version: {complaint(error)}") from None


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    """Makes one ValueError, with the checkpoint's name, of what PyTorch raises for odd weights."""
    try:
        yield
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:_REASON_CHARACTERS]
        raise ValueError(f"{path} does not hold what its model needs: {reason}") from error


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
