"""Muon: momentum whose updates are made orthogonal (Jordan et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration, chosen by Jordan et al. for a steep slope at zero."""
_ITERATIONS = 5
_RMS = 0.2
"""Root mean square of an AdamW update in units of its learning rate (Liu et al. 2025, sec. 2.2)."""


class Muon(torch.optim.Optimizer):
    """Muon on matrices, with decoupled weight decay.

    An update has the root mean square that AdamW's would have at the same learning rate (Liu et
    al. 2025, eq. 4), so that both can share one. `torch.optim.Muon` iterates in bfloat16, which
    takes longer than the rest of a step on a processor without such products; this one then
    keeps the weights' precision.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
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
        parameter.add_(orthogonal(nesterov), alpha=-step)


def orthogonal(matrix: Tensor) -> Tensor:
    """U V^T of a matrix U S V^T, [m, n], by Newton-Schulz iteration, up to some 30 %."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    if x.is_cuda or torch.cpu._is_avx512_bf16_supported():
        x = x.bfloat16()
    x = x / x.norm().clamp(min=1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)
