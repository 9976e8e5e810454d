"""Muon: momentum with orthogonalised updates (Jordan et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

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
