"""The gating units in PyTorch (see `model.core.gates`)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from model.core.gates import Function, Gate

_FUNCTIONS: dict[Function, Callable[[Tensor], Tensor]] = {
    "Identity": lambda x: x,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Relu": torch.relu,
}


def gated(x: Tensor, gate: Gate) -> Tensor:
    """x: float [..., 2C] for gates of two halves, [..., C] for others, to float [..., C].

    The first half is a, the second b.
    """
    if gate.second is None:
        return _FUNCTIONS[gate.first](x)
    if (gate.first, gate.second) == ("Identity", "Sigmoid"):
        return torch.nn.functional.glu(x, -1)  # the same in one pass
    a, b = x.chunk(2, -1)
    return _FUNCTIONS[gate.first](a) * _FUNCTIONS[gate.second](b)
