"""Weights in 8 bits: a byte for each number, a scale for each column.

A number w is stored as the byte round(w / s), -127 to 127, s the scale of its column. A byte times
its scale is exact in float32, and a rounded weight gives back the same bytes. Tables that are only
looked up use all 255 bytes. Other weights may lie on a grid of integer multiples of one number: few
of them occur, so that their bytes compress well.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_LEVELS = 127
_SMALLEST = 1e-12
"""The least range of a column, so that a column of zeros has a scale."""
_CANDIDATES = np.linspace(0.2, 1.0, 17)
"""Ranges to choose from, as parts of a column's largest number."""


def round_to_bytes(table: Tensor) -> Tensor:
    """A table [rows, columns] rounded to numbers that bytes stand for, float32.

    Each column has the range of the least squared error; numbers outside become its bounds.
    """
    table = table.detach().float()
    largest = table.abs().amax(0)
    best, least = table, torch.full_like(largest, torch.inf)
    for part in _CANDIDATES:
        scales = _scales(largest * part)
        candidate = (table / scales).round_().clamp_(-_LEVELS, _LEVELS).mul_(scales)
        errors = (candidate - table).square_().mean(0)
        best = torch.where(errors < least, candidate, best)
        least = torch.minimum(errors, least)
    return best


def on_grid(weight: Tensor, spacing: float) -> Tensor:
    """A weight, float32, rounded to integer multiples of a number, -127 to 127.

    spacing: that number, relative to the root mean square of the weight. It is rounded to three
    binary digits, so that float16 holds the multiples. A weight that is not finite stays as it is.
    """
    weight = weight.detach().float()
    size = float(weight.square().mean().sqrt().clamp(min=_SMALLEST))
    if not math.isfinite(size):
        return weight
    fraction, exponent = math.frexp(spacing * size)
    step = math.ldexp(round(8 * fraction) / 8, exponent)
    return (weight / step).round_().clamp_(-_LEVELS, _LEVELS).mul_(step)


def require_bytes(table: Tensor) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """The bytes of a rounded weight, int8 [rows, columns], and its scales, float32 [columns].

    Raises ValueError for a weight that is not a result of `round_to_bytes` or `on_grid`.
    """
    stored = bytes_of(table)
    if stored is None:
        raise ValueError("a table has numbers that no byte stands for: round it first")
    return stored


def bytes_of(table: Tensor) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]] | None:
    """As `require_bytes`; None for a weight that no bytes stand for."""
    table = table.detach()
    sizes = table.abs()
    largest = sizes.amax(0)
    candidates = [_scales(largest)]
    if sizes.any() and sizes.isfinite().all():  # the smallest number is some multiple of the step
        least = float(sizes[sizes > 0].min())
        most = int(_LEVELS * least / float(largest.max()))
        candidates += [torch.full_like(largest, least / n) for n in range(1, most + 1)]
    for scales in candidates:
        numbers = (table / scales).round()
        if numbers.abs().le(_LEVELS).all() and torch.equal(numbers * scales, table):
            return numbers.to(torch.int8).numpy(), scales.numpy()
    return None


def _scales(ranges: Tensor) -> Tensor:
    """The scales of columns whose largest numbers are given, float32 [columns]."""
    return (ranges.clamp(min=_SMALLEST) / _LEVELS).bfloat16().float()
