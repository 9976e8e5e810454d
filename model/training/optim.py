"""Optimisers, Muon among them (Jordan et al. 2024), and learning-rate schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from model.architecture.causal import CausalModel

RATE = "rate"
"""Key of a parameter group's factor on the learning rate; 1 if it is not set."""
_POLYNOMIALS = (
    (8.2242, -23.3561, 16.6408),
    (3.9811, -2.8519, 0.5182),
    (3.5088, -2.5350, 0.4856),
    (2.5683, -1.8526, 0.4181),
)
"""a x + b x^3 + c x^5, one after the other. Each minimises the largest distance from 1 over the
interval to which the previous ones take singular values of 0.003 to 1 (Amsel et al. 2025, section
3), widened by 2 % at both ends for bfloat16's rounding. The results are between 0.75 and 1.25; five
iterations with (3.4445, -4.7750, 2.0315) by Jordan et al. give 0.68 to 1.20."""
_LARGEST = 0.99
"""The norm at the beginning, so that rounding takes no singular value above 1."""
_RMS = 0.2
"""Root mean square of an AdamW update in units of its learning rate (Liu et al. 2025, sec. 2.2)."""


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


class Muon(torch.optim.Optimizer):
    """Muon on matrices, with decoupled weight decay.

    An update has the same root mean square as AdamW's at the same learning rate (Liu et al. 2025,
    eq. 4), so that both can share one. `torch.optim.Muon` iterates in bfloat16, which takes longer
    than the rest of a step on a processor without bfloat16 products; this one keeps the weights'
    precision there.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].mul_(group["momentum"]).add_(gradient)
        nesterov = gradient.add(state["momentum"], alpha=group["momentum"])
        step = group["lr"] * _RMS * max(parameter.shape) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(orthogonalize(nesterov), alpha=-step)


def orthogonalize(matrix: Tensor) -> Tensor:
    """U V^T of a matrix U S V^T, [m, n], by Newton-Schulz iteration, within about 25 %."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    if x.is_cuda or torch.cpu._is_avx512_bf16_supported():
        x = x.bfloat16()
    x = x * (_LARGEST / x.norm().clamp(min=1e-7))
    for a, b, c in _POLYNOMIALS:
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)
