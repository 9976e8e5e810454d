"""The frames that a causal convolution reads at each token, side by side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.config import Layer


def joined(x: Tensor, layer: Layer, places: Tensor | None) -> Tensor:
    """x: [B, N, C] to [B, N, k * C]: at each token its frame, that d tokens before, and so on.

    Frames before the row, and before the token's text (see `CausalModel.places`), are zero. In
    autocast's type where it is on. Each frame is written once, where padding, masking and joining
    would write it three times; gradients are added up in the result's type.
    """
    backs = range(0, layer.span + 1, layer.dilation)
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    if len(backs) == 1:
        return x
    frames: Tensor = _Joined.apply(x, backs, places)  # type: ignore[no-untyped-call]
    return frames


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, backs: range, places: Tensor | None) -> Tensor:
        length = x.shape[1]
        frames = x.new_empty(*x.shape[:2], len(backs) * x.shape[2])
        masks: list[Tensor | None] = []
        for back, frame in zip(backs, frames.chunk(len(backs), -1), strict=True):
            frame[:, :back] = 0
            own, mask = x[:, : max(0, length - back)], None
            if places is None or back == 0:
                frame[:, back:] = own
            else:
                mask = (places[:, back:, None] >= back).to(x.dtype)
                torch.mul(own, mask, out=frame[:, back:])
            masks.append(mask)
        ctx.backs, ctx.masks = backs, masks
        return frames

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        parts: Iterable[Tensor] = gradient.chunk(len(ctx.backs), -1)
        length = gradient.shape[1]
        found: Tensor | None = None
        for back, mask, part in zip(ctx.backs, ctx.masks, parts, strict=True):
            if found is None:
                found = part.clone()  # of the frame itself
                continue
            own = found[:, : max(0, length - back)]
            if mask is None:
                own += part[:, back:]
            else:
                own.addcmul_(part[:, back:], mask)
        return found, None, None
