"""How a graph stores rows and computes products: in float32 and in float16."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

import numpy as np
import torch
from onnxscript import ir
from torch import nn

from model.core import graph, weight_names
from model.export.nodes import Nodes
from model.export.weights import Weights

Columns = tuple[int, int] | None
"""The first column and the one after the last; None for all."""


class Arithmetic:
    """Numbers between the layers of a graph, and products of them with weights: in float32.

    Legend: n rows, C channels. Everything except products (gates, residual sums, the softmax) is
    computed in the type of `Weights.dtype`.
    """

    precision: ClassVar[graph.Precision] = "float32"
    dtype: ClassVar[ir.DataType] = ir.DataType.FLOAT
    domains: ClassVar[Mapping[str, int]] = {}
    """Versions of operators that are not ONNX's own."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes, self.weights = nodes, Weights(nodes, self.dtype)

    def stored(self, name: str, x: ir.Value) -> ir.Value:
        """float [n, C] in the form in which the product of that name reads it, [n, C]."""
        return x

    def product(
        self, name: str, x: ir.Value, layer: nn.Module, stored_as: str, columns: Columns = None
    ) -> ir.Value:
        """x: [n, k * C], stored by the name `stored_as`, to x W + b, float [n, columns].

        layer: weight [all columns, k * C], bias [all columns] or None.
        """
        weight = self.weights.matrix(name, cast(torch.Tensor, layer.weight).T)
        product = self.nodes.op("MatMul", [x, self._columns_of(weight, columns)])
        bias = cast(torch.Tensor | None, layer.bias)
        if bias is None:
            return product
        added = self.weights.vector(weight_names.bias(name), bias)
        return self.nodes.op("Add", [product, self._columns_of(added, columns)])

    def zero_row(self, pool: str, channels: int) -> ir.Value:
        """Zeros as the frames of a pool are stored: [1, channels]."""
        return self.weights.vector(f"zero_{channels}", torch.zeros(1, channels))

    def logits(self, product: ir.Value) -> ir.Value:
        """A product as the softmax reads it, float32."""
        return product

    def largest(self, x: ir.Value) -> ir.Value:
        """float32 [n, columns] to the largest number of each row, [n, 1].

        By TopK: on a GPU ReduceMax would be the only node that needs cuDNN, 0.9 GB.
        """
        return self.nodes.ops("TopK", [x, self.nodes.integers(1)], 2, axis=1)[0]

    def padded_rows(self, rows: ir.Value) -> ir.Value:
        """Row numbers, int64 [n], with row 0 repeated up to a multiple that products need."""
        return rows

    def linear(self, name: str, layer: nn.Linear | None, x: ir.Value) -> ir.Value:
        """A projection of rows: float [n, C_in] to float [n, C]; x itself without a layer."""
        return x if layer is None else self.product(name, self.stored(name, x), layer, name)

    def _columns_of(self, x: ir.Value, columns: Columns) -> ir.Value:
        """Columns of a weight [rows, columns] or bias; ONNX Runtime cuts them out at load."""
        return x if columns is None else self.nodes.columns(x, *columns, axis=-1)


class Float16(Arithmetic):
    """The arithmetic for GPUs: frames, products, gates and sums have 16 bits.

    Looked-up vectors do from their first sum on. The softmax's sums of exponents are float32, and
    so are the ids in the pool of tokens, of which float16 holds only the first 2,048 exactly.
    """

    precision: ClassVar[graph.Precision] = "float16"
    dtype: ClassVar[ir.DataType] = ir.DataType.FLOAT16

    def zero_row(self, pool: str, channels: int) -> ir.Value:
        """Zeros, float32 for the pool of tokens."""
        if pool == graph.TOKEN_POOL:
            return self.nodes.constant("no_token", np.zeros((1, 1), np.float32))
        return super().zero_row(pool, channels)

    def logits(self, product: ir.Value) -> ir.Value:
        """As float32."""
        return self.nodes.op("Cast", [product], to=ir.DataType.FLOAT.value)
