"""Cross entropy of a wide softmax, with the logits of some rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_LOGITS_AT_ONCE = 5 << 20
"""Logits that there are at a time: more rows make better products, fewer stay near the cores."""
_NUMBERS_AT_ONCE = 1 << 19
"""Of these, those that are float32 at a time: 2 MiB, which a processor's cache holds."""
_ON_A_GPU = 1 << 25
"""Both where small parts cost launches."""
ROWS = 64
"""Blocks have a multiple of so many rows where they can: for every other number of rows that it
meets, oneDNN compiles a product anew, which takes as long as the product."""

_SMALLEST = torch.finfo(torch.float32).tiny
"""Below it a probability is subnormal or 0, and its logarithm wrong."""


@torch.no_grad()
def losses(x: Tensor, layer: nn.Linear, targets: Tensor) -> Tensor:
    """Negative log-probabilities of targets under the softmax of a layer, nats: float32 [n].

    x: [n, C]. layer: C to V. targets: int64 [n]. Has no gradients.
    """
    found = torch.empty(len(x), device=x.device)
    for rows in _slices(len(x), _rows_at_once(x, layer.weight)):
        logits = layer(x[rows])
        own, wanted = found[rows], targets[rows, None]
        for part in _parts(logits):
            logprobs = torch.log_softmax(logits[part], -1, dtype=torch.float32)
            own[part] = -logprobs.gather(1, wanted[part]).squeeze(1)
    return found


def total(x: Tensor, layer: nn.Linear, targets: Tensor) -> Tensor:
    """The sum of `losses`, float32 [], with gradients; rows with a target below 0 have neither, but
    must be finite.

    The gradients are made together with it and only scaled by what comes from behind: the logits of
    a block of rows are never needed again. Products are computed in autocast's type where it is on,
    which must hold gradients of a sum over all rows: bfloat16 does, float16 does not.
    """
    weight, bias = layer.weight, cast(Tensor | None, layer.bias)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    found: Tensor = _Total.apply(x, weight, bias, targets)  # type: ignore[no-untyped-call]
    return found


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
    ) -> Tensor:
        """Keeps the sum's gradients of x [n, C], weight [V, C] and bias [V]."""
        found = torch.zeros((), dtype=torch.float64, device=x.device)
        to_x = torch.empty_like(x)
        to_weight = torch.zeros_like(weight, dtype=torch.float32)
        to_bias = torch.zeros(len(weight), device=x.device)
        room = x.new_empty(_rows_at_once(x, weight), len(weight))  # asked for once
        for rows in _slices(len(x), len(room)):
            logits = _logits(x[rows], weight, bias, room)
            left_out = targets[rows] < 0
            wanted = targets[rows].clamp(min=0)[:, None]
            for part in _parts(logits):
                losses = _differentiate(logits[part], wanted[part]).masked_fill_(left_out[part], 0)
                found += losses.sum(dtype=torch.float64)
            if len(unwanted := left_out.nonzero().squeeze(1)):
                logits.index_fill_(0, unwanted, 0)
            to_x[rows] = logits @ weight
            to_weight += logits.T @ x[rows]
            if bias is not None:
                to_bias += logits.sum(0, dtype=torch.float32)
        of_bias = None if bias is None else to_bias.to(bias.dtype)
        ctx.save_for_backward(to_x, to_weight.to(weight.dtype), of_bias)
        return found.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """gradient: float32 []."""
        kept = (None if each is None else each * gradient for each in ctx.saved_tensors)
        return (*kept, None)


def _differentiate(logits: Tensor, targets: Tensor) -> Tensor:
    """Losses, float32 [n]. In the place of logits, [n, V], come the losses' gradients.

    targets: int64 [n, 1]. One pass of exponentials serves both.
    """
    softmax = torch.softmax(logits, -1, dtype=torch.float32)
    own = softmax.gather(1, targets).squeeze(1)
    losses = -own.log()
    if len(tiny := (own < _SMALLEST).nonzero().squeeze(1)):
        logprobs = torch.log_softmax(logits[tiny], -1, dtype=torch.float32)
        losses[tiny] = -logprobs.gather(1, targets[tiny]).squeeze(1)
    less = softmax.new_full((len(softmax), 1), -1.0)
    logits.copy_(softmax.scatter_add_(1, targets, less))  # rounded
    return losses


def _logits(x: Tensor, weight: Tensor, bias: Tensor | None, room: Tensor) -> Tensor:
    """x: [n, C] to logits [n, V], in the first rows of room."""
    own = room[: len(x)]
    if bias is None:
        return torch.mm(x, weight.T, out=own)
    return torch.addmm(bias, x, weight.T, out=own)


def _rows_at_once(x: Tensor, weight: Tensor) -> int:
    """Rows of blocks of about one size that have about as many logits as there may be at a time."""
    most = _size(len(weight), _LOGITS_AT_ONCE, x.device)
    even = math.ceil(len(x) / max(1, math.ceil(len(x) / most)))
    return math.ceil(even / ROWS) * ROWS


def _parts(logits: Tensor) -> Iterator[slice]:
    """Slices of rows that may be float32 at a time."""
    count, columns = logits.shape
    return _slices(count, _size(columns, _NUMBERS_AT_ONCE, logits.device))


def _size(columns: int, most: int, device: torch.device) -> int:
    """How many rows have at most so many entries, or _ON_A_GPU on other devices than a processor;
    at least one."""
    return max(1, (most if device.type == "cpu" else _ON_A_GPU) // columns)


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(begin, begin + size) for begin in range(0, count, max(size, 1)))
