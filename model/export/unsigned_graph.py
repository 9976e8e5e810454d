"""The 8-bit graph with its weights as unsigned bytes: exact on every processor.

See `model.core.byte_products` for why a bundle has both. A weight w becomes the byte w + 128 with
zero point 128, which changes no product. The graph computes it from the stored weight, which ONNX
Runtime does once, at load.
"""

from __future__ import annotations

import numpy as np
from onnxscript import ir

from model.export.quantize import ZERO_POINT

_WEIGHT, _WEIGHT_ZERO_POINT, _INPUTS = 1, 5, 7
"""Positions of two inputs of MatMulIntegerToFloat, and the number of its inputs."""


def convert(made: ir.Model) -> ir.Model:
    """Changes an 8-bit graph of signed weights into that of unsigned ones, and returns it."""
    graph = made.graph
    tape = ir.tape.Tape()
    shift, zero_point = (
        tape.initializer(ir.tensor(np.array(ZERO_POINT, kind), name=name), name=name)
        for name, kind in (("unsigned_shift", np.int32), ("unsigned_zero_point", np.uint8))
    )
    shifted: dict[ir.Value, ir.Value] = {}
    for node in list(graph.all_nodes()):
        if node.op_type != "MatMulIntegerToFloat":
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
