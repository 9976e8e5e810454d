"""The frames that a causal convolution reads for each token, side by side."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.core.config import Layer


def side_by_side(x: Tensor, layer: Layer, positions: Tensor | None) -> Tensor:
    """x: [B, N, C] to [B, N, k * C]: of each token its frame, that d tokens before, and so on.

    Frames before the row, and before the token's text (see `CausalModel.positions`), are zero. The
    result has autocast's type where autocast is on. Each frame is written once, while padding,
    masking and concatenating would write it three times; gradients are summed in the result's type.
    """
    if not layer.span:
        return x
    dtype = x.dtype
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    backs = range(layer.dilation, layer.span + 1, layer.dilation)
    frames: Tensor = _SideBySide.apply(x, backs, positions, dtype)  # type: ignore[no-untyped-call]
    return frames


class _SideBySide(torch.autograd.Function):
    """backs: how many tokens before a token each frame after the first is."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, backs: range, positions: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """Keeps a mask [B, N - back, 1] for each frame after the first, or None."""
        length = x.shape[1]
        frames = x.new_empty(*x.shape[:2], (1 + len(backs)) * x.shape[2], dtype=dtype)
        first, *further = frames.chunk(1 + len(backs), -1)
        first.copy_(x)
        ctx.backs, ctx.masks, ctx.dtype = backs, [], x.dtype
        for back, frame in zip(backs, further, strict=True):
            frame[:, :back] = 0
            before, mask = first[:, : max(0, length - back)], None
            if positions is None:
                frame[:, back:] = before
            else:
                mask = (positions[:, back:, None] >= back).to(dtype)
                torch.mul(before, mask, out=frame[:, back:])
            ctx.masks.append(mask)
        return frames

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """gradient: [B, N, k * C]."""
        length = gradient.shape[1]
        summed, *further = gradient.chunk(1 + len(ctx.backs), -1)
        for back, mask, part in zip(ctx.backs, ctx.masks, further, strict=True):
            kept = max(0, length - back)
            total = torch.empty_like(summed, memory_format=torch.contiguous_format)
            total[:, kept:] = summed[:, kept:]
            before = total[:, :kept]
            if mask is None:
                torch.add(summed[:, :kept], part[:, back:], out=before)
            else:
                torch.addcmul(summed[:, :kept], part[:, back:], mask, out=before)
            summed = total
        return summed.to(ctx.dtype), None, None, None
