"""Clamp whose gradient still pushes values back into range."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def clamp(x: Tensor, bound: float) -> Tensor:
    """x, any shape, clamped to [-bound, bound].

    A number outside gets the gradients that bring it back, and none that move it further out. With
    no gradient at all it would stay outside for ever.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return x.clamp(-bound, bound)
    least, most = x.detach().aminmax()
    if bool((least >= -bound) & (most <= bound)):
        return x  # one reading is much faster than the rest
    clamped: Tensor = _Clamp.apply(x, bound)  # type: ignore[no-untyped-call]
    return clamped


class _Clamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        """Keeps the indices of the numbers outside, few of many, and the bound of each."""
        clamped = x.clamp(-bound, bound)
        outside = (x != clamped).flatten().nonzero().squeeze(1)
        ctx.save_for_backward(outside, clamped.flatten()[outside])
        return clamped

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        outside, bounds = ctx.saved_tensors
        kept = gradient.clone(memory_format=torch.contiguous_format)
        numbers = kept.view(-1)
        gradients = numbers[outside]
        numbers[outside] = gradients.masked_fill(bounds * gradients < 0, 0.0)
        return kept, None
