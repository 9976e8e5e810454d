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
    if not (torch.is_grad_enabled() and x.requires_grad):
        return x.clamp(-bound, bound)
    least, most = x.detach().aminmax()
    if bool((least >= -bound) & (most <= bound)):
        return x  # reading it once is much less than what follows
    found: Tensor = _Bounded.apply(x, bound)  # type: ignore[no-untyped-call]
    return found


class _Bounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        """Keeps where the numbers beyond the bound are, few of many, and which end they are at."""
        found = x.clamp(-bound, bound)
        beyond = (x != found).flatten().nonzero().squeeze(1)
        ctx.save_for_backward(beyond, found.flatten()[beyond])
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        beyond, ends = ctx.saved_tensors
        kept = gradient.clone(memory_format=torch.contiguous_format)
        numbers = kept.view(-1)
        own = numbers[beyond]
        numbers[beyond] = own.masked_fill(ends * own < 0, 0.0)
        return kept, None
