"""Optimisers and learning-rate schedules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from model.training.muon import Muon

RATE = "rate"
"""A parameter group's factor on the learning rate; 1 where it is not set."""


class OptimConfig(BaseModel):
    """How weights are updated.

    name `adamw`: decoupled weight decay on matrices alone. `muon`: Muon on the matrices between
    embedding and softmax, AdamW on the rest. `nesterov`: the paper's recipe (section 4.4),
    momentum 0.99 and a learning rate of about 1 with gradients clipped at 0.1.
    schedule `trapezoid`: linear warm-up, constant, then linear to zero over the last
    `cooldown` share of the steps. `plateau`: halved at each validation that is not better.
    table_rate is a factor on the learning rate of what is looked up: the embedding and the n-grams'
    vectors, each of which only few tokens move; `nesterov` has none.
    average_decay above 0: validated and kept are not the weights themselves but their
    exponential average over the updates.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["adamw", "muon", "nesterov"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    table_rate: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    schedule: Literal["trapezoid", "plateau"] = "trapezoid"
    warmup_steps: Annotated[int, Field(ge=0)] = 200
    cooldown: Annotated[float, Field(ge=0, le=1)] = 0.4
    average_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0


def build(config: OptimConfig, model: nn.Module) -> list[torch.optim.Optimizer]:
    """The optimisers that share the model's parameters."""
    if config.name == "nesterov":
        return [
            torch.optim.SGD(
                model.parameters(),
                lr=config.learning_rate,
                momentum=config.momentum,
                nesterov=config.momentum > 0,
                weight_decay=config.weight_decay,
            )
        ]
    named = list(model.named_parameters())
    hidden = [p for n, p in named if config.name == "muon" and _is_hidden(n, p)]
    left = [(n, p) for n, p in named if not any(p is h for h in hidden)]
    matrices = [(n, p) for n, p in left if _is_matrix(n, p)]
    groups: Iterable[dict[str, object]] = [
        {
            "params": [p for n, p in matrices if not _is_table(n)],
            "weight_decay": config.weight_decay,
        },
        {
            "params": [p for n, p in matrices if _is_table(n)],
            "weight_decay": config.weight_decay,
            RATE: config.table_rate,
        },
        {"params": [p for n, p in left if not _is_matrix(n, p)], "weight_decay": 0.0},
    ]
    rate = config.learning_rate
    adamw = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), eps=1e-8, fused=True)
    if not hidden:
        return [adamw]
    return [Muon(hidden, lr=rate, weight_decay=config.weight_decay), adamw]


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    # original0 is the gain of a weight normalisation
    return parameter.ndim > 1 and not name.endswith("original0")


def _is_hidden(name: str, parameter: nn.Parameter) -> bool:
    ends = name.startswith("output.") or _is_table(name)
    return _is_matrix(name, parameter) and not ends


def _is_table(name: str) -> bool:
    return name.startswith("embedding.") or name.endswith("table.weight")


def trapezoid(config: OptimConfig, step: int, steps: int) -> float:
    """Factor on the learning rate at a step in [0, steps)."""
    cool = max(1, round(config.cooldown * steps))
    return min(1.0, (step + 1) / max(1, config.warmup_steps), (steps - step) / cool)
