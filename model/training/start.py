"""How a run begins: with random weights, with those of another model, or from its checkpoint."""

from __future__ import annotations

from pathlib import Path

from model.architecture.gcnn import GCNN, build
from model.architecture.lstm import LSTM
from model.core.outputs import check_folder
from model.training import checkpoint, restore
from model.training.checkpoint import State
from model.training.recipe import RunConfig

METRICS = "metrics.jsonl"


def check_run_folder(folder: Path) -> None:
    """Raises OSError unless a folder can become that of a run, or has a run to resume."""
    check_folder(folder, checkpoint.LAST)
    if (folder / checkpoint.LAST).exists():
        return
    for name in (checkpoint.BEST, METRICS):
        path = folder / name
        if path.exists() and (not path.is_file() or path.stat().st_size):
            raise FileExistsError(
                f"{folder} has {name}, but no {checkpoint.LAST} to resume from; "
                f"choose another folder, or move {name} away"
            )


def new_model(config: RunConfig, initial: GCNN | None, *, resumes: bool) -> GCNN | LSTM:
    """The recipe's model with random weights, or with those of `initial`.

    resumes: whether the weights are replaced by a checkpoint's afterwards. Raises ValueError if
    the model cannot have a feature that the recipe asks for.
    """
    settings = config.train
    model = build(config.model, config.start_id)
    if isinstance(model, GCNN):
        if settings.identity_blocks:
            model.begin_as_identity()
        if initial is not None:
            restore.copy(initial, model)
        if settings.grid is not None:
            model.gridded()  # raises ValueError if there cannot be a grid
    else:
        _check_features(config, initial)
    if settings.keep_ngrams:
        if not len(model.ngrams) or (initial is None and not resumes):
            raise ValueError(
                "keep_ngrams needs a model with n-grams, and one to begin with: --init"
            )
        for ngram in model.ngrams:
            ngram.table.requires_grad_(False)
    model.dropout = settings.dropout
    return model


def _check_features(config: RunConfig, initial: GCNN | None) -> None:
    """Raises ValueError for features that only convolutional models have."""
    if config.train.identity_blocks:
        raise ValueError("identity_blocks is for convolutional models")
    if initial is not None:
        raise ValueError("only a convolutional model can begin with another's weights")
    if config.train.grid is not None:
        raise ValueError("a grid is for convolutional models")


def can_resume(folder: Path, state: State, config: RunConfig) -> bool:
    """Whether a run resumes from the checkpoint in its folder; if not, it starts again.

    Raises ValueError if the checkpoint is of another run.
    """
    before = checkpoint.config_of(folder / checkpoint.LAST, state)
    unstarted = not state["step"] and not (folder / checkpoint.BEST).exists()
    if unstarted and (before.model, before.optim) != (config.model, config.optim):
        return False  # it stopped before its first update; nothing is lost
    if (before.model, before.start_id) != (config.model, config.start_id):
        raise ValueError(f"{folder} has a run of another model; choose another folder")
    was, now = before.optim, config.optim
    if was.name != now.name or bool(was.average_decay) != bool(now.average_decay):
        raise ValueError(
            f"{folder} has a run with another optimiser or averaging; choose another "
            "folder, or --init to begin with its weights"
        )
    if "optimizers" not in state:
        raise ValueError(f"{folder} has a run of an older version; choose another folder")
    return True
