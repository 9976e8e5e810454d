"""The flat graph in 8 bits: bytes between the layers, integer sums inside the products.

Every product reads its input as bytes of one fixed scale, or of the row's own, so that a row's
result depends on no other row, and its weights as bytes of one scale a column. Frames are gathered,
kept in the pools and carried as bytes. What is no product (gates, residual sums, the softmax) stays
float32.
"""

from __future__ import annotations

from typing import ClassVar, cast

import numpy as np
import torch
from onnxscript import ir
from torch import nn

from model.architecture import rounding as tables
from model.architecture.gcnn import GCNN
from model.core import graph
from model.export.flat import FlatGraph
from model.export.graph_writer import Columns
from model.export.quantize import (
    LEVELS,
    SMALLEST,
    ZERO_POINT,
    Scale,
    Scales,
    before_evened,
    column_scales,
    factors_of,
)

_MICROSOFT = "com.microsoft"


class EightBitGraph(FlatGraph):
    """Builds the 8-bit ONNX model of a GCNN whose weights are rounded (see `GCNN.stored`).

    The stored weights are those of `FlatGraph`.

    scales: of every product's input, as `divergence.refined` chooses them.
    """

    precision: graph.Precision = "int8"
    domains: ClassVar[dict[str, int]] = {_MICROSOFT: 1}

    def __init__(self, model: GCNN, scales: Scales) -> None:
        super().__init__(model)
        self.scales = scales
        self.bytes: dict[str, tuple[ir.Value, torch.Tensor]] = {}
        self.row_steps: dict[str, ir.Value] = {}
        self.zero_points: ir.Value | None = None
        self.before_evened = before_evened(model.config)

    def _stored(self, name: str, x: ir.Value) -> ir.Value:
        """float [n, C] to bytes of the scale that belongs to the name."""
        channels = self.scales[name].channels
        if channels is not None and name not in self.before_evened.values():
            x = self._op("Mul", [x, self._float(f"{name}_channels", 1 / channels)])
        if self.scales[name].by_row:
            return self._stored_by_row(name, x)
        return self._op("QuantizeLinear", [x, self._scale_of(name), self._zero_point()])

    def _stored_by_row(self, name: str, x: ir.Value) -> ir.Value:
        """The same with a scale for every row."""
        largest = self._op("ReduceMax", [self._op("Abs", [x]), self._integers(1)], keepdims=1)
        least = self._constant("smallest", np.array([[SMALLEST]], np.float32))
        step = self._constant("level", np.array([[1 / LEVELS]], np.float32))
        steps = self._op("Mul", [self._op("Max", [largest, least]), step])  # [n, 1]
        self.row_steps[name] = steps
        flat = self._reshape(steps, -1)
        if self.zero_points is None:  # the same for all layers: only the trunk's have such scales
            count = self._op("Shape", [self.inputs[graph.TOKENS]])
            zero = ir.tensor(np.array([ZERO_POINT], np.uint8))
            self.zero_points = self._op("ConstantOfShape", [count], value=zero)
        return self._op("QuantizeLinear", [x, flat, self.zero_points], axis=0)

    def _product(
        self, name: str, x: ir.Value, layer: nn.Module, stored_as: str, columns: Columns = None
    ) -> ir.Value:
        weight, scales = self._byte_weight(name, layer, stored_as, columns)
        bias = cast(torch.Tensor | None, layer.bias)
        first, last = columns or (0, len(scales))
        if bias is not None:
            bias = bias[first:last]
        behind = self.before_evened.get(name)
        if behind is not None and first == 0:  # in a gate of two halves, the first
            channels = self.scales[behind].channels
            assert channels is not None
            scales, bias = scales / channels, None if bias is None else bias / channels
        part = f"{name}_{first}"
        steps = self.row_steps.get(stored_as)
        inputs: list[ir.Value | None] = [x, weight, self._scale_of(stored_as)]
        inputs += [self._float(f"{part}_scales", scales), self._zero_point(), None]  # symmetric
        added = None if bias is None else self._float(f"{part}_bias", bias)
        if steps is None:
            return self.tape.op("MatMulIntegerToFloat", [*inputs, added], domain=_MICROSOFT)
        product = self.tape.op("MatMulIntegerToFloat", inputs, domain=_MICROSOFT)
        product = self._op("Mul", [product, steps])
        return product if added is None else self._op("Add", [product, added])

    def _filled(self, places: ir.Value) -> ir.Value:
        count = self._op("Shape", [places])
        multiple = self._integers(graph.ROW_MULTIPLES[self.precision])
        missing = self._op("Mod", [self._op("Neg", [count]), multiple])
        zero = ir.tensor(np.zeros(1, np.int64))
        return self._op(
            "Concat", [places, self._op("ConstantOfShape", [missing], value=zero)], axis=0
        )

    def _byte_weight(
        self, name: str, layer: nn.Module, stored_as: str, columns: Columns
    ) -> tuple[ir.Value, torch.Tensor]:
        """A layer's weight, [columns, rows], as int8 [rows, columns], and the columns' scales.

        A weight that is stored in bytes is read as it is, if its channels are not evened. Of others
        ONNX Runtime computes the bytes at load, so that a bundle stores each weight once.
        """
        weight = cast(torch.Tensor, layer.weight)
        first, last = columns or (0, len(weight))
        part = f"{name}_{first}"
        if part not in self.bytes:
            scale = self.scales[stored_as]
            alone = scale.channels is None and name not in self.weights
            found = tables.bytes_of(weight.T) if alone else None
            if found is None:
                self.bytes[part] = self._rounded(name, weight, scale, columns)
            else:
                numbers, scales = found
                stored = self._constant(name, np.ascontiguousarray(numbers))
                own = torch.from_numpy(scales[first:last])
                self.bytes[part] = self._some(stored, columns), own
        return self.bytes[part]

    def _rounded(
        self, name: str, weight: torch.Tensor, scale: Scale, columns: Columns
    ) -> tuple[ir.Value, torch.Tensor]:
        """The same of a weight, [columns, rows], whose bytes are computed at load."""
        first, last = columns or (0, len(weight))
        stored = self._weight(name, weight.T)
        factors = factors_of(scale, weight)
        if scale.channels is not None:
            rows = self._float(f"{name}_rows", factors[:, None])
            stored = self._op("Mul", [stored, rows])
        scales = column_scales((weight * factors)[first:last])
        zeros = self._constant(f"zeros_{last - first}", np.zeros(last - first, np.int8))
        steps = self._float(f"{name}_{first}_weight_scales", scales)
        rounded = self._op("QuantizeLinear", [self._some(stored, columns), steps, zeros], axis=1)
        return rounded, scales

    def _zero_row(self, pool_name: str, channels: int) -> ir.Value:
        if pool_name == graph.TOKEN_POOL:
            return super()._zero_row(pool_name, channels)
        row = np.full((1, channels), ZERO_POINT, np.uint8)
        return self._constant(f"zero_point_{channels}", row)

    def _scale_of(self, name: str) -> ir.Value:
        scale = self.scales[name]
        return self._float(
            f"{name}_scale", torch.tensor(1.0 if scale.by_row else scale.range / LEVELS)
        )

    def _zero_point(self) -> ir.Value:
        return self._constant("zero_point", np.array(ZERO_POINT, np.uint8))
