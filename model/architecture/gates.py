"""The gating units that the paper compares (Dauphin 2017, sections 3 and 5.2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from model.core.config import GateName


def _glu(x: Tensor) -> Tensor:
    return torch.nn.functional.glu(x, -1)


def _gtu(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.tanh(a) * torch.sigmoid(b)


def _bilinear(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return a * b


def _linear(x: Tensor) -> Tensor:
    return x


EMBEDDING_STD = 0.1
"""Standard deviation of a fresh embedding, which enters the first layer."""

GATES: dict[GateName, Callable[[Tensor], Tensor]] = {
    "glu": _glu,
    "gtu": _gtu,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "bilinear": _bilinear,
    "linear": _linear,
}
"""Name to function of x: float [..., 2C] (glu, gtu, bilinear) or [..., C], to float [..., C].

GLU: a * sigmoid(b) (eq. 1). GTU: tanh(a) * sigmoid(b) (eq. 2). Bilinear: a * b, the GLU without
its sigmoid. The first half is a, the second the gate b.
"""

GAINS: dict[GateName, float] = {
    "glu": 4.0,
    "gtu": 4.0,
    "tanh": 1.0,
    "relu": 2.0,
    "bilinear": 1.0 / EMBEDDING_STD,
    "linear": 1.0,
}
"""Variance of a fresh layer's sums over that of its inputs, so that the gate keeps the variance.

A sigmoid near zero halves what it gates, which the factor 4 makes up for; a ReLU keeps half of the
variance (He et al. 2015). A product of two sums has the variance v^2 g^2 for inputs of variance v:
it keeps the variance at which the embedding starts, and no other.
"""
