"""The flat graph in float16, for GPUs: frames, products, gates and sums are halves.

Looked-up vectors are halves from their first sum on, the softmax's sums of exponents float32, and
so are the ids in the pool of tokens, of which float16 holds only the first 2,048 exactly.
"""

from __future__ import annotations

import numpy as np
import torch
from onnxscript import ir

from model.core import graph
from model.export.flat import FlatGraph


class HalfGraph(FlatGraph):
    """Builds the float16 model of a GCNN whose weights are rounded (see `GCNN.stored`).

    The stored weights are those of `FlatGraph`.
    """

    precision: graph.Precision = "float16"

    def _number(self, stored: ir.Value) -> ir.Value:
        return stored

    def _whole_weight(self, stored: ir.Value, scales: ir.Value) -> ir.Value:
        """By a float32 product: at load there is none in float16."""
        found = super()._whole_weight(stored, scales)
        return self._op("Cast", [found], to=ir.DataType.FLOAT16.value)

    def _float(self, name: str, value: torch.Tensor) -> ir.Value:
        """A constant that is no stored weight, in float16 too."""
        return self._constant(f"{name}_float16", value.detach().half().numpy())

    def _zero_row(self, pool_name: str, channels: int) -> ir.Value:
        if pool_name == graph.TOKEN_POOL:
            return self._constant("no_token", np.zeros((1, 1), np.float32))
        return super()._zero_row(pool_name, channels)

    def _logits(self, product: ir.Value) -> ir.Value:
        return self._op("Cast", [product], to=ir.DataType.FLOAT.value)
