"""Cross entropy of a wide softmax, computed for some rows at a time to bound its memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_LOGITS_AT_ONCE = 5 << 20
"""Logits in memory at a time: products of more rows are faster, fewer stay in the cache."""
_NUMBERS_AT_ONCE = 1 << 19
"""How many of these are float32 at a time: 2 MiB, which a processor's cache holds."""
_ON_A_GPU = 1 << 25
"""Both on a GPU, where every part costs a launch."""
ROWS = 64
"""Blocks have a multiple of this many rows if possible: for every new number of rows oneDNN
compiles the product again, which takes as long as the product itself."""

_SMALLEST = torch.finfo(torch.float32).tiny
"""Below it a probability is subnormal or 0, and its logarithm wrong."""


@torch.no_grad()
def losses(x: Tensor, layer: nn.Linear, targets: Tensor) -> Tensor:
    """Negative log-probabilities of targets under the softmax of a layer, nats: float32 [n].

    x: [n, C]. layer: C to V. targets: int64 [n]. Has no gradients.
    """
    losses = torch.empty(len(x), device=x.device)
    for rows in _slices(len(x), _rows_at_once(x, layer.weight)):
        logits = layer(x[rows])
        block, wanted = losses[rows], targets[rows, None]
        for part in _parts(logits):
            logprobs = torch.log_softmax(logits[part], -1, dtype=torch.float32)
            block[part] = -logprobs.gather(1, wanted[part]).squeeze(1)
    return losses


def total(x: Tensor, layer: nn.Linear, targets: Tensor) -> Tensor:
    """The sum of `losses`, float32 [], with gradients. Rows with a target below 0 do not count,
    but must be finite.

    The gradients are computed together with the sum, and the backward pass only scales them: so the
    logits of a block are not needed again. Products are computed in autocast's type where it is on.
    It must hold gradients of a sum over all rows: bfloat16 does, float16 does not.
    """
    weight, bias = layer.weight, cast(Tensor | None, layer.bias)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    summed: Tensor = _Total.apply(x, weight, bias, targets)  # type: ignore[no-untyped-call]
    return summed


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
    ) -> Tensor:
        """Keeps the sum's gradients of x [n, C], weight [V, C] and bias [V]."""
        summed = torch.zeros((), dtype=torch.float64, device=x.device)
        to_x = torch.empty_like(x)
        to_weight = torch.zeros_like(weight, dtype=torch.float32)
        to_bias = torch.zeros(len(weight), device=x.device)
        room = x.new_empty(_rows_at_once(x, weight), len(weight))  # allocated once
        for rows in _slices(len(x), len(room)):
            logits = _logits(x[rows], weight, bias, room)
            left_out = targets[rows] < 0
            wanted = targets[rows].clamp(min=0)[:, None]
            for part in _parts(logits):
                losses = _differentiate(logits[part], wanted[part]).masked_fill_(left_out[part], 0)
                summed += losses.sum(dtype=torch.float64)
            if len(unwanted := left_out.nonzero().squeeze(1)):
                logits.index_fill_(0, unwanted, 0)
            to_x[rows] = logits @ weight
            to_weight += logits.T @ x[rows]
            if bias is not None:
                to_bias += logits.sum(0, dtype=torch.float32)
        of_bias = None if bias is None else to_bias.to(bias.dtype)
        ctx.save_for_backward(to_x, to_weight.to(weight.dtype), of_bias)
        return summed.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """gradient: float32 []."""
        kept = (None if each is None else each * gradient for each in ctx.saved_tensors)
        return (*kept, None)


def _differentiate(logits: Tensor, targets: Tensor) -> Tensor:
    """Losses, float32 [n]; replaces the logits, [n, V], by the gradients of the losses.

    targets: int64 [n, 1]. Both come from one pass of exponentials.
    """
    softmax = torch.softmax(logits, -1, dtype=torch.float32)
    probabilities = softmax.gather(1, targets).squeeze(1)
    losses = -probabilities.log()
    if len(tiny := (probabilities < _SMALLEST).nonzero().squeeze(1)):
        logprobs = torch.log_softmax(logits[tiny], -1, dtype=torch.float32)
        losses[tiny] = -logprobs.gather(1, targets[tiny]).squeeze(1)
    less = softmax.new_full((len(softmax), 1), -1.0)
    logits.copy_(softmax.scatter_add_(1, targets, less))  # rounded
    return losses


def _logits(x: Tensor, weight: Tensor, bias: Tensor | None, room: Tensor) -> Tensor:
    """x: [n, C] to logits [n, V], in the first rows of room."""
    out = room[: len(x)]
    if bias is None:
        return torch.mm(x, weight.T, out=out)
    return torch.addmm(bias, x, weight.T, out=out)


def _rows_at_once(x: Tensor, weight: Tensor) -> int:
    """Rows of a block: blocks of about one size, with at most about _LOGITS_AT_ONCE logits."""
    most = _size(len(weight), _LOGITS_AT_ONCE, x.device)
    even = math.ceil(len(x) / max(1, math.ceil(len(x) / most)))
    return math.ceil(even / ROWS) * ROWS


def _parts(logits: Tensor) -> Iterator[slice]:
    """Slices of rows that are float32 at a time."""
    count, columns = logits.shape
    return _slices(count, _size(columns, _NUMBERS_AT_ONCE, logits.device))


def _size(columns: int, most: int, device: torch.device) -> int:
    """How many rows have at most `most` entries, on a GPU _ON_A_GPU; at least one."""
    return max(1, (most if device.type == "cpu" else _ON_A_GPU) // columns)


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(begin, begin + size) for begin in range(0, count, max(size, 1)))
