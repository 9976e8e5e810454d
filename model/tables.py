"""Tables that are looked up, in 8 bits: a byte for each number, a scale for each column.

A number w is stored as the byte round(w / s), -127 to 127, s the scale of its column. Scales have
8 binary digits, so that a byte times its scale is exact in float32 and a rounded table gives back
the same bytes.
"""

from __future__ import annotations

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


def stored(table: Tensor) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """A rounded table's bytes, int8 [rows, columns], and its scales, float32 [columns].

    Raises ValueError when the table is not what `rounded` gives.
    """
    scales = _scales(table.detach().abs().amax(0))
    numbers = (table.detach() / scales).round()
    if not torch.equal(numbers * scales, table.detach()):
        raise ValueError("a table has numbers that no byte stands for: round it first")
    return numbers.to(torch.int8).numpy(), scales.numpy()


def _scales(ranges: Tensor) -> Tensor:
    """The scales of columns whose largest numbers are given, float32 [columns]."""
    return (ranges.clamp(min=_SMALLEST) / _LEVELS).bfloat16().float()
