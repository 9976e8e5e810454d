"""What the graphs of all models have at their ends, written op by op from weights.

Only operators whose result for a row is the same bits whatever the other rows are: no Log and, but
for counts, no ReduceSum, whose vector tails depend on a value's place; LogSoftmax on whole rows
instead.
"""

from __future__ import annotations

from typing import ClassVar, cast

import numpy as np
import numpy.typing as npt
import torch
from onnxscript import ir
from torch import nn

from model.architecture import rounding as tables
from model.architecture.causal import CausalModel
from model.architecture.softmax import AdaptiveSoftmax, FullSoftmax
from model.core import graph
from model.core.config import LanguageModelConfig

Columns = tuple[int, int] | None
"""From where to where; None for all."""

OPSET = 21
IR_VERSION = 10
LISTED: tuple[tuple[ir.DataType, list[str | int]], ...] = (
    (ir.DataType.FLOAT, [graph.LISTED_ROWS]),
    (ir.DataType.FLOAT, [graph.LISTED_ROWS]),
    (ir.DataType.INT64, [graph.LISTED_ROWS, "k"]),
    (ir.DataType.FLOAT, [graph.LISTED_ROWS, "k"]),
)
"""What a turn of the loop over listed rows gives, in the order of `graph.LISTED`."""


class Writer:
    """Writes what every model here has at its ends: weights, linear layers and the softmax.

    Weights are stored in float16, or in 8 bits where bytes stand for them, and made float32 by the
    graph, which ONNX Runtime folds at load, so that each is stored once; tables that are only
    looked up are stored in 8 bits.
    """

    precision: graph.Precision = "float32"
    domains: ClassVar[dict[str, int]] = {}

    def __init__(
        self, model: CausalModel, config: LanguageModelConfig, inputs: dict[str, ir.Value]
    ) -> None:
        self.output, self.ends = model.output, config
        self.tape = ir.tape.Tape()
        self.stores = ir.tape.Tape()
        """Takes the initializers, wherever they are first read."""
        self.constants: dict[tuple[int, ...], ir.Value] = {}
        self.weights: dict[str, ir.Value] = {}
        self.inputs = inputs

    def _finished(self, outputs: list[ir.Value], name: str) -> ir.Model:
        """The model of all nodes written so far."""
        return ir.Model(
            ir.Graph(
                list(self.inputs.values()),
                outputs,
                nodes=self.tape.nodes,
                initializers=self.stores.initializers,
                opset_imports={"": OPSET, **self.domains},
                name=name,
            ),
            ir_version=IR_VERSION,
            producer_name="convlm",
        )

    def _full(self, x: ir.Value) -> ir.Value:
        """x: stored rows [n, C] to the log-probabilities of a full softmax, [n, V]."""
        if self.ends.tied and "output" not in self.weights:  # stored once
            embedding = self._weight("embedding", cast(FullSoftmax, self.output).weight)
            self.weights["output"] = self._op("Transpose", [embedding], perm=[1, 0])
        return self._softmax("output", x, cast(FullSoftmax, self.output), "output")

    def _adaptive(self, x: ir.Value, scored: ir.Value) -> ir.Value:
        """Log-probabilities of targets, [N]; only rows whose target is in a tail pay for it."""
        output = cast(AdaptiveSoftmax, self.output)
        logprobs = self._softmax("head_columns", scored, output.head, "output")
        logprobs = self._of_targets(logprobs, self.inputs[graph.TARGETS])
        count = self._op("Shape", [logprobs])
        room = self._op("Add", [count, self._integers(1)])  # N, and a place for dummies
        zero = ir.tensor(np.zeros(1, np.float32))
        tails = self._op("ConstantOfShape", [room], value=zero)
        for index, module in enumerate(output.tails):
            inside = self._op("Gather", [x, self.inputs[graph.tail_rows_name(index)]])
            own = self._conditional(index, cast(nn.Sequential, module), inside)
            own = self._of_targets(own, self.inputs[graph.tail_targets_name(index)])
            places = self.inputs[graph.tail_places_name(index)]
            tails = self._op("ScatterElements", [tails, places, own], axis=0)
        extra = self._op("Slice", [tails, self._integers(0), count, self._integers(0)])
        return self._op("Add", [logprobs, extra])

    def _following(self, wanted: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """wanted: stored rows [M, C] to the head's log-probabilities [M, columns], the places of
        the rows that pay for the tails [m], and these rows' tokens of all tails, [m, tokens].

        A token's is the same sum of a head's and a tail's entry as a target's, to the bit.
        """
        output = cast(AdaptiveSoftmax, self.output)
        head = self._softmax("head_columns", wanted, output.head, "output")
        places = self._paying(head)
        rows = self._op("Gather", [wanted, places])
        parts = self._tails(rows, self._op("Gather", [head, places]))
        tails = parts[0] if len(parts) == 1 else self._op("Concat", parts, axis=1)
        return head, places, tails

    def _tails(self, x: ir.Value, head: ir.Value) -> list[ir.Value]:
        """The log-probabilities of each tail's tokens, [n, columns], of stored rows [n, C] and the
        head's, [n, columns]."""
        parts = []
        for index, module in enumerate(cast(AdaptiveSoftmax, self.output).tails):
            first = self.ends.cutoffs[0] + index
            entry = self._column_range(head, first, first + 1)
            within = self._conditional(index, cast(nn.Sequential, module), x)
            parts.append(self._op("Add", [entry, within]))
        return parts

    def _whole(self, x: ir.Value) -> ir.Value:
        """x: stored rows [n, C] to the log-probabilities of every token, [n, V]."""
        if not self.ends.cutoffs:
            return self._full(x)
        head = self._softmax("head_columns", x, cast(AdaptiveSoftmax, self.output).head, "output")
        common = self._column_range(head, 0, self.ends.cutoffs[0])
        return self._op("Concat", [common, *self._tails(x, head)], axis=1)

    def _listed(self, x: ir.Value) -> list[ir.Value]:
        """x: all stored rows [T, C] to `graph.LISTED`.

        LISTED_ROWS rows at a time, so that their distributions stay in the processor's cache. Comes
        behind all that reads the softmax's weights, which are kept outside of the loop.
        """
        size = self._integers(graph.LISTED_ROWS)
        times = self._op("Div", [self._op("Shape", [self.inputs[graph.LIST_ROWS]]), size])
        turn, on = (
            ir.Value(name=name, shape=ir.Shape([]), type=ir.TensorType(kind))
            for name, kind in (("turn", ir.DataType.INT64), ("on", ir.DataType.BOOL))
        )
        around, self.tape = self.tape, ir.tape.Tape()
        outputs = [self._op("Identity", [on]), *self._listed_rows(x, turn, size)]
        inner, self.tape = self.tape, around
        # names of their own: a graph inside may not use those of the graph around
        for number, value in enumerate(value for node in inner.nodes for value in node.outputs):
            value.name = f"listing_{number}"
        body = ir.Graph([turn, on], outputs, nodes=inner.nodes, name="listing")
        count = self._op("Squeeze", [times])
        loop = [count, None], {"body": body}
        return list(self.tape.op_multi_out("Loop", *loop, num_outputs=len(graph.LISTED)))

    def _listed_rows(self, x: ir.Value, turn: ir.Value, size: ir.Value) -> list[ir.Value]:
        """What the loop's turn of that number gives for its rows (see `LISTED`)."""
        first = self._op("Mul", [turn, size])
        bounds = [first, self._op("Add", [first, size])]
        rows, targets = (
            self._op("Slice", [self.inputs[name], *bounds])
            for name in (graph.LIST_ROWS, graph.LIST_TARGETS)
        )
        whole = self._whole(self._op("Gather", [x, rows]))
        target = self._target_column(whole, targets)
        likelier = self._op("Greater", [whole, target])
        likelier = self._op("Cast", [likelier], to=ir.DataType.FLOAT.value)
        # a count, which float32 holds exactly in any order
        likelier = self._op("ReduceSum", [likelier, self._integers(1)], keepdims=0)
        inputs = [whole, self.inputs[graph.LIST_COUNT]]
        top, ids = self.tape.op_multi_out("TopK", inputs, {"axis": 1}, num_outputs=2)
        found = [self._reshape(target, -1), likelier, ids, top]
        for value, (kind, shape) in zip(found, LISTED, strict=True):
            value.dtype, value.shape = kind, ir.Shape(shape)
        return found

    def _paying(self, head: ir.Value) -> ir.Value:
        """The rows of [M, columns] whose tails are wanted, int64 [m]: see `graph.TailTerms`.

        Here other places may give other bits: which rows pay changes no result.
        """
        first, columns = self.ends.cutoffs[0], self.ends.head_columns
        axis = self._integers(1)
        ordinary = self._column_range(head, graph.HELD_TOKENS, first)
        best = self._largest(ordinary)
        others = self._integers(*range(graph.HELD_TOKENS), *range(first, columns))
        others = self._op("Gather", [head, others], axis=1)
        likely = self._op("Exp", [self._op("Concat", [best, others], axis=1)])
        terms = self._op("Mul", [likely, self.inputs[graph.TAIL_WEIGHTS]])
        total = self._op("ReduceSum", [terms, axis], keepdims=0)
        paying = self._op("GreaterOrEqual", [total, self.inputs[graph.TAIL_FLOORS]])
        return self._filled(self._reshape(self._op("NonZero", [paying]), -1))

    def _largest(self, x: ir.Value) -> ir.Value:
        """float32 [n, columns] to the largest number of each row, [n, 1].

        On a GPU ReduceMax would be the only node that needs cuDNN, a library of 0.9 GB. On a CPU it
        is the faster one, and the 8-bit graph is for CPUs alone.
        """
        one = self._integers(1)
        if self.precision == "int8":
            return self._op("ReduceMax", [x, one], keepdims=1)
        return self.tape.op_multi_out("TopK", [x, one], {"axis": 1}, num_outputs=2)[0]

    def _filled(self, places: ir.Value) -> ir.Value:
        """int64 [n], with row 0 again up to the multiple that products need."""
        return places

    def _conditional(self, index: int, tail: nn.Sequential, x: ir.Value) -> ir.Value:
        """x: stored rows [n, C] to log-probabilities within a tail, [n, columns]."""
        narrow, wide = (cast(nn.Linear, layer) for layer in tail)
        name = f"tail_{index}_out"
        inner = self._product(f"tail_{index}_in", x, narrow, "output")
        return self._softmax(name, self._stored(name, inner), wide, name)

    def _softmax(self, name: str, x: ir.Value, layer: nn.Module, stored_as: str) -> ir.Value:
        """x: stored rows [n, C] to log-probabilities [n, columns]."""
        logits = self._logits(self._product(name, x, layer, stored_as))
        return self._op("LogSoftmax", [logits], axis=-1)

    def _logits(self, product: ir.Value) -> ir.Value:
        """A product as the softmax reads it, float32."""
        return product

    def _stored(self, name: str, x: ir.Value) -> ir.Value:
        """Rows [n, C] in the form in which products read them."""
        return x

    def _product(
        self, name: str, x: ir.Value, layer: nn.Module, stored_as: str, columns: Columns = None
    ) -> ir.Value:
        """x: [n, k * C_in], stored as named, to x W + b, float [n, columns], or some of them."""
        weight = self._some(self._weight(name, cast(torch.Tensor, layer.weight).T), columns)
        product = self._op("MatMul", [x, weight])
        bias = self._bias(name, layer, columns)
        return product if bias is None else self._op("Add", [product, bias])

    def _bias(self, name: str, layer: nn.Module, columns: Columns) -> ir.Value | None:
        bias = cast(torch.Tensor | None, layer.bias)
        return None if bias is None else self._some(self._float(f"{name}_bias", bias), columns)

    def _some(self, x: ir.Value, columns: Columns) -> ir.Value:
        """Columns of a weight [rows, columns] or bias; ONNX Runtime cuts them out at load."""
        if columns is None:
            return x
        bounds = [self._integers(number) for number in (*columns, -1)]
        return self._op("Slice", [x, *bounds])

    def _of_targets(self, logprobs: ir.Value, targets: ir.Value) -> ir.Value:
        """logprobs: [n, columns] to the targets' entries [n]."""
        return self._reshape(self._target_column(logprobs, targets), -1)

    def _target_column(self, logprobs: ir.Value, targets: ir.Value) -> ir.Value:
        """logprobs: [n, columns] to the targets' entries [n, 1]. targets: int64 [n]."""
        column = self._op("Unsqueeze", [targets, self._integers(1)])
        return self._op("GatherElements", [logprobs, column], axis=1)

    def _column_range(self, x: ir.Value, first: int, last: int) -> ir.Value:
        bounds = [self._integers(number) for number in (first, last, 1)]
        return self._op("Slice", [x, *bounds])

    def _linear(self, layer: nn.Linear | None, name: str, x: ir.Value) -> ir.Value:
        if layer is None:
            return x
        return self._product(name, self._stored(name, x), layer, name)

    def _op(self, op_type: str, inputs: list[ir.Value], **attributes: object) -> ir.Value:
        return self.tape.op(op_type, inputs, attributes or None)  # type: ignore[arg-type]

    def _reshape(self, x: ir.Value, *shape: int) -> ir.Value:
        """Reshapes; 0 keeps a length, -1 takes what is left."""
        return self._op("Reshape", [x, self._integers(*shape)])

    def _integers(self, *values: int) -> ir.Value:
        if values not in self.constants:
            name = "integers_" + "_".join(str(v) for v in values)
            tensor = ir.tensor(np.array(values, np.int64), name=name)
            self.constants[values] = self.stores.initializer(tensor, name=name)
        return self.constants[values]

    def _weight(self, name: str, weight: torch.Tensor) -> ir.Value:
        if name not in self.weights:
            found = tables.bytes_of(weight)
            if found is None:
                self.weights[name] = self._number(self._halves(name, weight))
            else:
                self.weights[name] = self._whole_weight(*self._bytes(name, *found))
        return self.weights[name]

    def _whole_weight(self, stored: ir.Value, scales: ir.Value) -> ir.Value:
        """A weight [rows, columns] of bytes and its columns' scales, as it is computed with."""
        return self._op("Mul", [self._op("Cast", [stored], to=ir.DataType.FLOAT.value), scales])

    def _rows_of(self, name: str, table: torch.Tensor, rows: ir.Value) -> ir.Value:
        """Rows of a table that is only looked up, float [n, columns]. Made floats when gathered: as
        it is stored, the table is read from the mapped file, which all sessions share."""
        stored, scales = self._bytes(name, *tables.stored(table))
        return self._whole_weight(self._op("Gather", [stored, rows]), scales)

    def _bytes(
        self, name: str, numbers: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]
    ) -> tuple[ir.Value, ir.Value]:
        """A weight as it is stored, in 8 bits, and its columns' scales."""
        stored = self._constant(name, np.ascontiguousarray(numbers))
        return stored, self._constant(f"{name}_scales", scales)

    def _number(self, stored: ir.Value) -> ir.Value:
        """float16 as it is computed with: float32."""
        return self._op("Cast", [stored], to=ir.DataType.FLOAT.value)

    def _halves(self, name: str, weight: torch.Tensor) -> ir.Value:
        """A weight as it is stored, in float16."""
        return self._constant(name, np.ascontiguousarray(weight.detach().half().numpy()))

    def _float(self, name: str, value: torch.Tensor) -> ir.Value:
        return self._constant(name, value.detach().float().numpy())

    def _constant(self, name: str, value: npt.NDArray[np.generic]) -> ir.Value:
        for initializer in self.stores.initializers:
            if initializer.name == name:
                return initializer
        return self.stores.initializer(ir.tensor(value, name=name), name=name)
