"""Weights in 8 bits: a byte for each number, a scale for each column.

A number w is stored as the byte round(w / s), -127 to 127, s the scale of its column. A byte times
its scale is exact in float32, and what was rounded gives back the same bytes. Tables that are only
looked up use all 255 bytes. Other weights may lie on a grid, whole multiples of one number: there
are few of them, and their bytes pack well.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_LEVELS = 127
_SMALLEST = 1e-12
"""The least range of a column: one of zeros has a scale too."""
_CANDIDATES = np.linspace(0.2, 1.0, 17)
"""Ranges to choose from, as parts of a column's largest number."""


def rounded(table: Tensor) -> Tensor:
    """A table [rows, columns] as 8 bits hold it, float32.

    What lies beyond a column's range becomes its end; ranges are those of the least squared error.
    """
    table = table.detach().float()
    largest = table.abs().amax(0)
    best, least = table, torch.full_like(largest, torch.inf)
    for part in _CANDIDATES:
        scales = _scales(largest * part)
        found = (table / scales).round_().clamp_(-_LEVELS, _LEVELS).mul_(scales)
        errors = (found - table).square_().mean(0)
        best = torch.where(errors < least, found, best)
        least = torch.minimum(errors, least)
    return best


def on_grid(weight: Tensor, spacing: float) -> Tensor:
    """A weight, float32, as whole multiples of a number, -127 to 127 of them.

    spacing: that number in root mean squares of the weight. It is taken to three binary digits, so
    that float16 holds the multiples. A weight that is not finite stays as it is.
    """
    weight = weight.detach().float()
    size = float(weight.square().mean().sqrt().clamp(min=_SMALLEST))
    if not math.isfinite(size):
        return weight
    fraction, exponent = math.frexp(spacing * size)
    step = math.ldexp(round(8 * fraction) / 8, exponent)
    return (weight / step).round_().clamp_(-_LEVELS, _LEVELS).mul_(step)


def stored(table: Tensor) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """A rounded weight's bytes, int8 [rows, columns], and its scales, float32 [columns].

    Raises ValueError when it is not what `rounded` or `on_grid` give.
    """
    found = bytes_of(table)
    if found is None:
        raise ValueError("a table has numbers that no byte stands for: round it first")
    return found


def bytes_of(table: Tensor) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]] | None:
    """As `stored`; None for a weight that no bytes stand for."""
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
