"""The nodes of an ONNX graph, written one after the other.

All graphs here use only operators whose result for a row is the same bits whatever the other rows
are: no Log and, but for counts, no ReduceSum, whose vector tails depend on a value's position;
LogSoftmax on complete rows instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from onnxscript import ir

OPSET = 21
IR_VERSION = 10


class Nodes:
    """Nodes and constants of a graph, in the order in which they are written.

    inputs: the graph's, by name.
    """

    def __init__(self, inputs: dict[str, ir.Value]) -> None:
        self.inputs = inputs
        self._tape = ir.tape.Tape()
        self._constants = ir.tape.Tape()
        """Takes the initializers, also of those first read in an inner graph."""
        self._by_name: dict[str, ir.Value] = {}

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        *,
        domain: str = "",
        **attributes: object,
    ) -> ir.Value:
        """The output of a new node."""
        return self._tape.op(op_type, inputs, attributes or None, domain=domain)  # type: ignore[arg-type]

    def ops(
        self, op_type: str, inputs: Sequence[ir.Value | None], outputs: int, **attributes: object
    ) -> list[ir.Value]:
        """The outputs of a new node that has several."""
        made = self._tape.op_multi_out(op_type, inputs, attributes, num_outputs=outputs)  # type: ignore[arg-type]
        return list(made)

    def reshape(self, x: ir.Value, *shape: int) -> ir.Value:
        """Reshapes; 0 keeps a length, -1 takes what is left."""
        return self.op("Reshape", [x, self.integers(*shape)])

    def columns(self, x: ir.Value, first: int, last: int, axis: int = 1) -> ir.Value:
        """x[:, first:last], or the same of another axis; of a constant, made at load."""
        bounds = [self.integers(number) for number in (first, last, axis)]
        return self.op("Slice", [x, *bounds])

    def integers(self, *values: int) -> ir.Value:
        """A constant of int64 numbers, [n]."""
        name = "integers_" + "_".join(str(v) for v in values)
        return self.constant(name, np.array(values, np.int64))

    def constant(self, name: str, value: npt.NDArray[np.generic]) -> ir.Value:
        """A constant; later calls with the same name give the same one."""
        if name not in self._by_name:
            tensor = ir.tensor(value, name=name)
            self._by_name[name] = self._constants.initializer(tensor, name=name)
        return self._by_name[name]

    def loop(
        self, count: ir.Value, body: Callable[[ir.Value], list[ir.Value]], name: str
    ) -> list[ir.Value]:
        """Outputs of every turn of a loop, [turns, ...].

        count: int64 [], how many turns. body: writes the nodes of a turn, given its number, int64
        [], and returns the turn's outputs.
        """
        turn = value("turn", ir.DataType.INT64, [])
        condition = value("on", ir.DataType.BOOL, [])
        outer, self._tape = self._tape, ir.tape.Tape()
        outputs = [self.op("Identity", [condition]), *body(turn)]
        inner, self._tape = self._tape, outer
        # an inner graph may not use names of the outer one
        for number, made in enumerate(made for node in inner.nodes for made in node.outputs):
            made.name = f"{name}_{number}"
        graph = ir.Graph([turn, condition], outputs, nodes=inner.nodes, name=name)
        return self.ops("Loop", [count, None], len(outputs) - 1, body=graph)

    def model(
        self, outputs: list[ir.Value], name: str, domains: Mapping[str, int] | None = None
    ) -> ir.Model:
        """The model of all nodes. domains: versions of further sets of operators."""
        return ir.Model(
            ir.Graph(
                list(self.inputs.values()),
                outputs,
                nodes=self._tape.nodes,
                initializers=self._constants.initializers,
                opset_imports={"": OPSET, **(domains or {})},
                name=name,
            ),
            ir_version=IR_VERSION,
            producer_name="convlm",
        )


def value(name: str, dtype: ir.DataType, shape: Sequence[str | int]) -> ir.Value:
    """An input of a graph."""
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def described(
    output: ir.Value, name: str, dtype: ir.DataType, shape: Sequence[str | int]
) -> ir.Value:
    """An output of a graph, with its name and type."""
    output.name, output.dtype, output.shape = name, dtype, ir.Shape(shape)
    return output
