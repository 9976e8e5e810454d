"""The frames that a causal convolution reads at each token, side by side."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.core.config import Layer


def joined(x: Tensor, layer: Layer, places: Tensor | None) -> Tensor:
    """x: [B, N, C] to [B, N, k * C]: at each token its frame, that d tokens before, and so on.

    Frames before the row, and before the token's text (see `CausalModel.places`), are zero. In
    autocast's type where it is on. Each frame is written once, where padding, masking and joining
    would write it three times; gradients are added up in the result's type.
    """
    if not layer.span:
        return x
    dtype = x.dtype
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    backs = range(layer.dilation, layer.span + 1, layer.dilation)
    frames: Tensor = _Joined.apply(x, backs, places, dtype)  # type: ignore[no-untyped-call]
    return frames


class _Joined(torch.autograd.Function):
    """backs: how far behind the token each further frame lies, its own being the first."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, backs: range, places: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """Keeps a mask [B, N - back, 1] for each further frame, or None."""
        length = x.shape[1]
        frames = x.new_empty(*x.shape[:2], (1 + len(backs)) * x.shape[2], dtype=dtype)
        first, *further = frames.chunk(1 + len(backs), -1)
        first.copy_(x)
        ctx.backs, ctx.masks, ctx.dtype = backs, [], x.dtype
        for back, frame in zip(backs, further, strict=True):
            frame[:, :back] = 0
            before, mask = first[:, : max(0, length - back)], None
            if places is None:
                frame[:, back:] = before
            else:
                mask = (places[:, back:, None] >= back).to(dtype)
                torch.mul(before, mask, out=frame[:, back:])
            ctx.masks.append(mask)
        return frames

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """gradient: [B, N, k * C]."""
        length = gradient.shape[1]
        found, *further = gradient.chunk(1 + len(ctx.backs), -1)
        for back, mask, part in zip(ctx.backs, ctx.masks, further, strict=True):
            kept = max(0, length - back)
            total = torch.empty_like(found, memory_format=torch.contiguous_format)
            total[:, kept:] = found[:, kept:]
            before = total[:, :kept]
            if mask is None:
                torch.add(found[:, :kept], part[:, back:], out=before)
            else:
                torch.addcmul(found[:, :kept], part[:, back:], mask, out=before)
            found = total
        return found.to(ctx.dtype), None, None, None
