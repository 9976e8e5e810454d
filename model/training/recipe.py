"""Recipes: the configuration of a training run, a TOML file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model.core.config import AnyModelConfig, complaint
from model.data import text_files
from model.training.optim import OptimConfig

Positive = Annotated[int, Field(ge=1)]


class TrainConfig(BaseModel):
    """Budget and schedule. Lengths are in tokens, intervals in steps, times in seconds.

    `rows_at_once`: rows of a batch that are computed together, by default all; fewer need less
    memory, and on a CPU less time, because their frames stay in the caches. `identity_blocks`: see
    `GCNN.begin_as_identity`. `keep_ngrams`: the n-grams' vectors are not trained. `grid`: after
    update `grid_after` the model computes with its weights rounded to a grid of that spacing (see
    `GCNN.stored`), while the unrounded weights are updated and saved. Validations always use the
    grid.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: Positive
    batch_rows: Positive = 8
    row_tokens: Positive = 256
    rows_at_once: Positive | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    identity_blocks: bool = False
    keep_ngrams: bool = False
    grid: Annotated[float, Field(ge=0.04, le=1)] | None = None
    grid_after: Annotated[int, Field(ge=0)] = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    validate_every: Positive = 500
    validate_tokens: Positive = 100_000
    checkpoint_seconds: Annotated[float, Field(gt=0)] = 120.0
    seed: int = 0


class DataConfig(BaseModel):
    """The corpus that a recipe is for, and where to get it; printed if there is no corpus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: str
    source: str


class RunConfig(BaseModel):
    """A recipe: the model, the optimiser and the budget."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: DataConfig | None = None
    model: AnyModelConfig
    optim: OptimConfig = OptimConfig()
    train: TrainConfig
    start_id: Annotated[int, Field(ge=0)] = 0

    @classmethod
    def read(cls, path: Path) -> RunConfig:
        """Reads a recipe. Raises OSError, ValueError with the field and the reason."""
        try:
            return cls.model_validate(read_toml(path))
        except ValidationError as error:
            raise ValueError(f"{path}: {complaint(error)}") from None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.start_id >= self.model.vocabulary:
            raise ValueError(
                f"start_id is {self.start_id}, beyond the {self.model.vocabulary} tokens"
            )
        return self


def read_toml(path: Path) -> dict[str, Any]:
    """The contents of a TOML file. Raises OSError, ValueError."""
    try:
        return tomllib.loads(text_files.read(path))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
