"""The flat graph in 8 bits: bytes between the layers, integer sums inside the products.

Every product reads its input as bytes of one fixed scale, or of one for each row, so that a row's
result depends on no other row, and its weights as bytes of one scale a column. Frames are gathered,
kept in the pools and carried as bytes. Everything else (gates, residual sums, the softmax) is
float32. Each input channel of a product can be divided by a factor that the product before it
absorbs, and channels are padded to a multiple of 4. The graph is written a second time with
unsigned weights (`unsigned`) for processors whose signed products saturate. How scales and factors
are chosen is in `quantize` and `divergence`; the arithmetic is explained in
docs/reference/flat-batch.md, section 8 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

import numpy as np
import torch
from onnxscript import ir
from torch import nn

from model.architecture import rounding
from model.architecture.gcnn import GCNN
from model.core import graph, weight_names
from model.core.config import ModelConfig
from model.export.arithmetic import Arithmetic, Columns
from model.export.flat import FlatGraph, graph_inputs
from model.export.nodes import Nodes
from model.export.quantize import (
    LEVELS,
    SMALLEST,
    ZERO_POINT,
    Scale,
    Scales,
    absorbing_products,
    column_scales,
    factors_of,
)

_MICROSOFT = "com.microsoft"
_PRODUCT = "MatMulIntegerToFloat"
_WEIGHT, _WEIGHT_ZERO_POINT, _INPUTS = 1, 5, 7
"""Positions of two inputs of this operator, and the number of its inputs."""


def int8_graph(model: GCNN, scales: Scales) -> ir.Model:
    """The 8-bit ONNX model of a GCNN whose weights are rounded (see `GCNN.stored`).

    It stores the same weights as the float32 graph. scales: of every product's input, as
    `divergence.refine` chooses them.
    """
    nodes = Nodes(graph_inputs(model.config, Int8.precision))
    return FlatGraph(model, Int8(nodes, model.config, scales)).build()


class Int8(Arithmetic):
    """The arithmetic of the 8-bit graph."""

    precision: ClassVar[graph.Precision] = "int8"
    domains: ClassVar[Mapping[str, int]] = {_MICROSOFT: 1}

    def __init__(self, nodes: Nodes, config: ModelConfig, scales: Scales) -> None:
        super().__init__(nodes)
        self.scales = scales
        self._absorbing = absorbing_products(config)
        self._byte_weights: dict[str, tuple[ir.Value, torch.Tensor]] = {}
        self._row_steps: dict[str, ir.Value] = {}
        self._zero_points: ir.Value | None = None

    def stored(self, name: str, x: ir.Value) -> ir.Value:
        """float [n, C] to bytes of the scale that belongs to the name."""
        channels = self.scales[name].channels
        if channels is not None and name not in self._absorbing.values():
            factors = self.weights.vector(f"{name}_channels", 1 / channels)
            x = self.nodes.op("Mul", [x, factors])
        if self.scales[name].by_row:
            return self._stored_by_row(name, x)
        return self.nodes.op("QuantizeLinear", [x, self._scale_of(name), self._zero_point()])

    def product(
        self, name: str, x: ir.Value, layer: nn.Module, stored_as: str, columns: Columns = None
    ) -> ir.Value:
        """See `Arithmetic.product`."""
        weight, scales = self._byte_weight(name, layer, stored_as, columns)
        bias = cast(torch.Tensor | None, layer.bias)
        first, last = columns or (0, len(scales))
        if bias is not None:
            bias = bias[first:last]
        reader = self._absorbing.get(name)
        if reader is not None and first == 0:  # in a gate of two halves, the first
            channels = self.scales[reader].channels
            assert channels is not None
            scales, bias = scales / channels, None if bias is None else bias / channels
        part = f"{name}_{first}"
        steps = self._row_steps.get(stored_as)
        inputs: list[ir.Value | None] = [x, weight, self._scale_of(stored_as)]
        inputs += [self.weights.vector(weight_names.scales(part), scales), self._zero_point(), None]
        added = None
        if bias is not None:
            added = self.weights.vector(weight_names.bias(part), bias)
        if steps is None:
            return self._integer_product([*inputs, added])
        product = self.nodes.op("Mul", [self._integer_product(inputs), steps])
        return product if added is None else self.nodes.op("Add", [product, added])

    def zero_row(self, pool: str, channels: int) -> ir.Value:
        """Bytes of the number 0; float32 for the pool of tokens."""
        if pool == graph.TOKEN_POOL:
            return super().zero_row(pool, channels)
        row = np.full((1, channels), ZERO_POINT, np.uint8)
        return self.nodes.constant(f"zero_point_{channels}", row)

    def largest(self, x: ir.Value) -> ir.Value:
        """By ReduceMax, the faster operator on a CPU: this graph is for CPUs alone."""
        return self.nodes.op("ReduceMax", [x, self.nodes.integers(1)], keepdims=1)

    def padded_rows(self, rows: ir.Value) -> ir.Value:
        """Up to the next multiple of `graph.ROW_MULTIPLES`."""
        count = self.nodes.op("Shape", [rows])
        multiple = self.nodes.integers(graph.ROW_MULTIPLES[self.precision])
        missing = self.nodes.op("Mod", [self.nodes.op("Neg", [count]), multiple])
        zero = ir.tensor(np.zeros(1, np.int64))
        padding = self.nodes.op("ConstantOfShape", [missing], value=zero)
        return self.nodes.op("Concat", [rows, padding], axis=0)

    def _stored_by_row(self, name: str, x: ir.Value) -> ir.Value:
        """float [n, C] to bytes of one scale for each row."""
        largest = self.nodes.op(
            "ReduceMax", [self.nodes.op("Abs", [x]), self.nodes.integers(1)], keepdims=1
        )
        least = self.nodes.constant("smallest", np.array([[SMALLEST]], np.float32))
        step = self.nodes.constant("level", np.array([[1 / LEVELS]], np.float32))
        steps = self.nodes.op("Mul", [self.nodes.op("Max", [largest, least]), step])  # [n, 1]
        self._row_steps[name] = steps
        flat = self.nodes.reshape(steps, -1)
        if self._zero_points is None:  # the same for all layers: only the trunk's have such scales
            count = self.nodes.op("Shape", [self.nodes.inputs[graph.TOKENS]])
            zero = ir.tensor(np.array([ZERO_POINT], np.uint8))
            self._zero_points = self.nodes.op("ConstantOfShape", [count], value=zero)
        return self.nodes.op("QuantizeLinear", [x, flat, self._zero_points], axis=0)

    def _integer_product(self, inputs: list[ir.Value | None]) -> ir.Value:
        """inputs: rows, weight, their scales and zero points (none: the weight's are symmetric),
        and a bias or nothing, to float [n, columns]."""
        return self.nodes.op(_PRODUCT, inputs, domain=_MICROSOFT)

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
        if part not in self._byte_weights:
            scale = self.scales[stored_as]
            as_stored = scale.channels is None and not self.weights.has(name)
            numbers = rounding.bytes_of(weight.T) if as_stored else None
            if numbers is None:
                self._byte_weights[part] = self._rounded(name, weight, scale, columns)
            else:
                stored = self.weights.in_bytes(name, numbers[0])
                stored = self._columns_of(stored, columns)
                self._byte_weights[part] = stored, torch.from_numpy(numbers[1][first:last])
        return self._byte_weights[part]

    def _rounded(
        self, name: str, weight: torch.Tensor, scale: Scale, columns: Columns
    ) -> tuple[ir.Value, torch.Tensor]:
        """The same of a weight, [columns, rows], whose bytes are computed at load."""
        first, last = columns or (0, len(weight))
        stored = self.weights.matrix(name, weight.T)
        factors = factors_of(scale, weight)
        if scale.channels is not None:
            rows = self.weights.vector(f"{name}_rows", factors[:, None])
            stored = self.nodes.op("Mul", [stored, rows])
        scales = column_scales((weight * factors)[first:last])
        zeros = self.nodes.constant(f"zeros_{last - first}", np.zeros(last - first, np.int8))
        steps = self.weights.vector(f"{name}_{first}_weight_scales", scales)
        stored = self._columns_of(stored, columns)
        return self.nodes.op("QuantizeLinear", [stored, steps, zeros], axis=1), scales

    def _scale_of(self, name: str) -> ir.Value:
        scale = self.scales[name]
        step = torch.tensor(1.0 if scale.by_row else scale.range / LEVELS)
        return self.weights.vector(f"{name}_scale", step)

    def _zero_point(self) -> ir.Value:
        return self.nodes.constant("zero_point", np.array(ZERO_POINT, np.uint8))


def unsigned(made: ir.Model) -> ir.Model:
    """Changes an 8-bit graph so that its weights are unsigned bytes, and returns it.

    It is exact on every processor (see `model.core.byte_products`). A weight w becomes the byte
    w + 128 with zero point 128, which changes no product. The graph computes it from the stored
    weight, which ONNX Runtime does once, at load.
    """
    graph = made.graph
    tape = ir.tape.Tape()
    shift, zero_point = (
        tape.initializer(ir.tensor(np.array(ZERO_POINT, kind), name=name), name=name)
        for name, kind in (("unsigned_shift", np.int32), ("unsigned_zero_point", np.uint8))
    )
    shifted: dict[ir.Value, ir.Value] = {}
    for node in list(graph.all_nodes()):
        if node.op_type != _PRODUCT:
            continue
        weight = node.inputs[_WEIGHT]
        assert weight is not None
        if weight not in shifted:
            number = len(shifted)
            wide = tape.op("Cast", [weight], {"to": ir.DataType.INT32.value})
            moved = tape.op("Add", [wide, shift])
            shifted[weight] = tape.op("Cast", [moved], {"to": ir.DataType.UINT8.value})
            for step, value in enumerate((wide, moved, shifted[weight])):
                value.name = f"unsigned_{number}_{step}"
        node.resize_inputs(_INPUTS)
        node.replace_input_with(_WEIGHT, shifted[weight])
        node.replace_input_with(_WEIGHT_ZERO_POINT, zero_point)
    for value in tape.initializers:
        graph.register_initializer(value)
    graph.extend(tape.nodes)
    graph.sort()
    return made
