"""The flat graph in 8 bits: bytes between the layers, integer sums inside the products.

Every product reads its input as bytes of one fixed scale, so that a row's result depends on no
other row, and its weights as bytes of one scale a column. Frames are gathered, kept in the pools
and carried as bytes. What is no product (gates, residual sums, the softmax) stays float32.
"""

from __future__ import annotations

from typing import ClassVar, cast

import numpy as np
import torch
from onnxscript import ir
from torch import nn

from model import graph
from model.flat import Columns, FlatGraph
from model.gcnn import GCNN
from model.quantize import LEVELS, ZERO_POINT, Scales, column_scales

_MICROSOFT = "com.microsoft"


class EightBitGraph(FlatGraph):
    """Builds the 8-bit ONNX model of a folded GCNN; the stored weights are those of `FlatGraph`.

    scales: of every product's input, as `quantize.calibrate` finds them.
    """

    precision: graph.Precision = "int8"
    domains: ClassVar[dict[str, int]] = {_MICROSOFT: 1}

    def __init__(self, model: GCNN, scales: Scales) -> None:
        super().__init__(model)
        self.scales = scales
        self.bytes: dict[str, tuple[ir.Value, ir.Value]] = {}

    def _stored(self, name: str, x: ir.Value) -> ir.Value:
        """float [n, C] to bytes of the scale that belongs to the name."""
        return self._op("QuantizeLinear", [x, self._scale_of(name), self._zero_point()])

    def _product(
        self, name: str, x: ir.Value, layer: nn.Module, stored_as: str, columns: Columns = None
    ) -> ir.Value:
        weight, scales = self._byte_weight(name, cast(torch.Tensor, layer.weight), columns)
        inputs = [x, weight, self._scale_of(stored_as), scales, self._zero_point()]
        no_zero_point = None  # weights are symmetric
        inputs += [no_zero_point, self._bias(name, layer, columns)]  # type: ignore[list-item]
        return self.tape.op("MatMulIntegerToFloat", inputs, domain=_MICROSOFT)

    def _byte_weight(
        self, name: str, weight: torch.Tensor, columns: Columns
    ) -> tuple[ir.Value, ir.Value]:
        """weight: [columns, rows] to int8 [rows, columns] and the columns' scales.

        ONNX Runtime computes the bytes at load, so that a bundle stores each weight once.
        """
        first, last = columns or (0, len(weight))
        part = f"{name}_{first}"
        if part not in self.bytes:
            scales = self._float(f"{part}_scales", column_scales(weight[first:last]))
            zeros = self._constant(f"zeros_{last - first}", np.zeros(last - first, np.int8))
            stored = self._some(self._weight(name, weight.T), columns)
            rounded = self._op("QuantizeLinear", [stored, scales, zeros], axis=1)
            self.bytes[part] = rounded, scales
        return self.bytes[part]

    def _zero_row(self, pool_name: str, channels: int) -> ir.Value:
        if pool_name == graph.TOKEN_POOL:
            return super()._zero_row(pool_name, channels)
        row = np.full((1, channels), ZERO_POINT, np.uint8)
        return self._constant(f"zero_point_{channels}", row)

    def _scale_of(self, name: str) -> ir.Value:
        return self._float(f"{name}_scale", torch.tensor(self.scales[name] / LEVELS))

    def _zero_point(self) -> ir.Value:
        return self._constant("zero_point", np.array(ZERO_POINT, np.uint8))
