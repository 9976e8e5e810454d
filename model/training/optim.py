"""Optimisers and learning-rate schedules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from model.architecture.causal import CausalModel
from model.training.muon import Muon

RATE = "rate"
"""Key of a parameter group's factor on the learning rate; 1 if it is not set."""


class OptimConfig(BaseModel):
    """How weights are updated.

    name `adamw`: decoupled weight decay on matrices alone. `muon`: Muon on the matrices between
    embedding and softmax, AdamW on the rest. `nesterov`: the paper's recipe (section 4.4),
    momentum 0.99 and a learning rate of about 1, gradients clipped at 0.1.
    schedule `trapezoid`: linear warm-up, constant, then linear to zero over the last `cooldown`
    share of the steps. `plateau`: halved after each validation without an improvement. table_rate:
    a factor on the learning rate of tables, the embedding and the n-grams' vectors, whose rows few
    tokens change; not for `nesterov`. average_decay: above 0, the exponential average of the
    weights over the updates is validated and kept instead of the weights.
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


def build(config: OptimConfig, model: CausalModel) -> list[torch.optim.Optimizer]:
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
    hidden, matrices, tables, vectors = _sorted(model, muon=config.name == "muon")
    decay, rate = config.weight_decay, config.learning_rate
    groups: Iterable[dict[str, object]] = [
        {"params": matrices, "weight_decay": decay},
        {"params": tables, "weight_decay": decay, RATE: config.table_rate},
        {"params": vectors, "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), eps=1e-8, fused=True)
    if not hidden:
        return [adamw]
    return [Muon(hidden, lr=rate, weight_decay=config.weight_decay), adamw]


def _sorted(model: CausalModel, *, muon: bool) -> tuple[list[nn.Parameter], ...]:
    """A model's parameters: the matrices for Muon, other matrices, tables, and vectors."""
    looked_up = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    softmax = {id(parameter) for parameter in model.output.parameters()}
    kinds: tuple[list[nn.Parameter], ...] = ([], [], [], [])
    hidden, matrices, tables, vectors = kinds
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or name.endswith("original0"):  # a weight normalisation's gain
            vectors.append(parameter)
        elif id(parameter) in looked_up:
            tables.append(parameter)
        elif muon and id(parameter) not in softmax:
            hidden.append(parameter)
        else:
            matrices.append(parameter)
    return kinds


def trapezoid(config: OptimConfig, step: int, steps: int) -> float:
    """Factor on the learning rate at a step in [0, steps)."""
    cool = max(1, round(config.cooldown * steps))
    return min(1.0, (step + 1) / max(1, config.warmup_steps), (steps - step) / cool)
