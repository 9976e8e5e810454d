"""What a training run is made from, as one TOML file."""

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
    """Budget and pace. Lengths are in tokens, intervals in steps, times in seconds.

    `rows_at_once` rows of a batch go through the model at a time, all by default: fewer take less
    memory, and on a CPU less time, since their frames stay in the caches. `identity_blocks`: see
    `GCNN.begin_as_identity`. `keep_ngrams`: the n-grams' vectors stay those of the model that the
    run begins with.
    `grid`: from update `grid_after` on the model computes with weights on a grid of that spacing
    (see `GCNN.stored`), and learns to do with them; what is updated and kept are those behind them.
    Validations are on the grid from the beginning.
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
    """What a recipe was made for, and where to get it: said when there is no corpus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: str
    source: str


class RunConfig(BaseModel):
    """A recipe: the model, how its weights are updated, and the budget."""

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
    """What a TOML file holds. Raises OSError, ValueError."""
    try:
        return tomllib.loads(text_files.read(path))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
