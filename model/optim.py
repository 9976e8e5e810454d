"""Optimisers and learning-rate schedules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn


class OptimConfig(BaseModel):
    """How weights are updated.

    name `adamw`: decoupled weight decay on matrices alone. `nesterov`: the paper's recipe
    (section 4.4), momentum 0.99 and a learning rate of about 1 with gradients clipped at 0.1.
    schedule `trapezoid`: linear warm-up, constant, then linear to zero over the last
    `cooldown` share of the steps. `plateau`: halved at each validation that is not better.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["adamw", "nesterov"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    schedule: Literal["trapezoid", "plateau"] = "trapezoid"
    warmup_steps: Annotated[int, Field(ge=0)] = 200
    cooldown: Annotated[float, Field(ge=0, le=1)] = 0.4


def build(config: OptimConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser over the model's parameters."""
    if config.name == "nesterov":
        return torch.optim.SGD(
            model.parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
            weight_decay=config.weight_decay,
        )
    decayed = [p for n, p in model.named_parameters() if _is_matrix(n, p)]
    others = [p for n, p in model.named_parameters() if not _is_matrix(n, p)]
    groups: Iterable[dict[str, object]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), eps=1e-8)


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    # original0 is the gain of a weight normalisation
    return parameter.ndim > 1 and not name.endswith("original0")


def trapezoid(config: OptimConfig, step: int, steps: int) -> float:
    """Factor on the learning rate at a step in [0, steps)."""
    cool = max(1, round(config.cooldown * steps))
    return min(1.0, (step + 1) / max(1, config.warmup_steps), (steps - step) / cool)
