"""The gating units of convolutions as data (Dauphin 2017, sections 3 and 5.2).

A gate is first(a) * second(b) of the two halves of a convolution's sums, a and b; without a second
function it is first(a) of all sums. The functions are ONNX operators, which the graph takes as they
are; `model.architecture.gates` has the same functions in PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Function = Literal["Identity", "Sigmoid", "Tanh", "Relu"]
IDENTITY: Function = "Identity"

EMBEDDING_STD = 0.1
"""Standard deviation of a fresh embedding, which enters the first layer."""


@dataclass(frozen=True, slots=True)
class Gate:
    """A gating unit.

    gain: variance of a fresh layer's sums over that of its inputs, so that the gate keeps the
    variance.
    """

    first: Function
    second: Function | None
    gain: float

    @property
    def halves(self) -> int:
        """Output columns of a convolution for each output channel."""
        return 1 if self.second is None else 2

    @property
    def linear(self) -> bool:
        """Whether the gate is linear in a."""
        return self.first == IDENTITY


GateName = Literal["glu", "gtu", "tanh", "relu", "bilinear", "linear"]

GATES: dict[GateName, Gate] = {
    "glu": Gate("Identity", "Sigmoid", 4.0),  # eq. 1
    "gtu": Gate("Tanh", "Sigmoid", 4.0),  # eq. 2
    "tanh": Gate("Tanh", None, 1.0),
    "relu": Gate("Relu", None, 2.0),
    "bilinear": Gate("Identity", "Identity", 1.0 / EMBEDDING_STD),  # a GLU without its sigmoid
    "linear": Gate("Identity", None, 1.0),
}
"""A sigmoid near zero halves what it gates, which the gain 4 makes up for; a ReLU keeps half of the
variance (He et al. 2015). A product of two sums has the variance v^2 g^2 for inputs of variance v:
it keeps the variance at which the embedding starts, and no other."""
