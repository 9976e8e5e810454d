"""A bound on numbers that still lets them come back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def bounded(x: Tensor, bound: float) -> Tensor:
    """x, any shape, with what lies beyond -bound to bound at its end.

    A number beyond gets the gradients by which it would come back, none by which it would go
    further: with none at all it would stay there for good.
    """
    found: Tensor = _Bounded.apply(x, bound)  # type: ignore[no-untyped-call]
    return found


class _Bounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        """Keeps how far beyond the bound each number is."""
        found = x.clamp(-bound, bound)
        ctx.save_for_backward(x - found)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (beyond,) = ctx.saved_tensors
        return gradient.masked_fill(beyond * gradient < 0, 0.0), None
