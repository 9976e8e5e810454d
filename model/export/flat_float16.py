"""The flat graph in float16, for GPUs: frames, products, gates and sums have 16 bits.

Looked-up vectors do from their first sum on. The softmax's sums of exponents are float32, and so
are the ids in the pool of tokens, of which float16 holds only the first 2,048 exactly.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from onnxscript import ir

from model.architecture.gcnn import GCNN
from model.core import graph
from model.export.arithmetic import Float32
from model.export.flat import FlatGraph, graph_inputs
from model.export.nodes import Nodes
from model.export.weights import Weights


def float16_graph(model: GCNN) -> ir.Model:
    """The float16 ONNX model of a GCNN whose weights are rounded (see `GCNN.stored`).

    It stores the same weights as the float32 graph.
    """
    nodes = Nodes(graph_inputs(model.config, Float16.precision))
    return FlatGraph(model, Float16(nodes, Weights(nodes, ir.DataType.FLOAT16))).build()


class Float16(Float32):
    """The arithmetic of the float16 graph, which reads its weights in float16."""

    precision: ClassVar[graph.Precision] = "float16"

    def zero_row(self, pool: str, channels: int) -> ir.Value:
        """Zeros, float32 for the pool of tokens."""
        if pool == graph.TOKEN_POOL:
            return self.nodes.constant("no_token", np.zeros((1, 1), np.float32))
        return super().zero_row(pool, channels)

    def logits(self, product: ir.Value) -> ir.Value:
        """As float32."""
        return self.nodes.op("Cast", [product], to=ir.DataType.FLOAT.value)
