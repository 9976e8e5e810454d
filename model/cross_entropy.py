"""Cross entropy over a wide softmax, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_NUMBERS_AT_ONCE = 1 << 19
"""Logits that are float32 at a time: 2 MiB, which a processor's cache holds."""
_ON_A_GPU = 1 << 25
"""The same there, where small parts cost launches."""


def losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-probabilities of targets, nats: float32 [n].

    logits: float32 or bfloat16 [n, V]. targets: int64 [n]. What PyTorch's own computes from float32
    logits, without another float32 copy of logits or gradients for all rows: each would be tens of
    megabytes, in an adaptive softmax's tails of another size in every batch.
    """
    found: Tensor = _CrossEntropy.apply(logits, targets)  # type: ignore[no-untyped-call]
    return found


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, targets)
        found = torch.empty(len(logits), device=logits.device)
        for rows in _parts(logits):
            logprobs = torch.log_softmax(logits[rows], -1, dtype=torch.float32)
            found[rows] = -logprobs.gather(1, targets[rows, None]).squeeze(1)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """gradient: float32 [n], times the softmax less one at the target: [n, V]."""
        logits, targets = ctx.saved_tensors
        result = torch.empty_like(logits)
        for rows in _parts(logits):
            part = torch.softmax(logits[rows], -1, dtype=torch.float32)
            part.scatter_add_(1, targets[rows, None], part.new_full((len(part), 1), -1.0))
            torch.mul(part, gradient[rows, None], out=result[rows])
        return result, None


def _parts(logits: Tensor) -> Iterator[slice]:
    room = _NUMBERS_AT_ONCE if logits.device.type == "cpu" else _ON_A_GPU
    rows = max(1, room // logits.shape[1])
    for begin in range(0, len(logits), rows):
        yield slice(begin, begin + rows)
