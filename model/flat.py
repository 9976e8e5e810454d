"""The flat graph, written op by op from a model's weights (see `model.graph` for its interface).

Only operators whose result for a row is the same bits whatever the other rows are: no Log and no
ReduceSum, whose vector tails depend on a value's place; LogSoftmax on whole rows instead.
"""

from __future__ import annotations

from typing import ClassVar, cast

import numpy as np
import numpy.typing as npt
import torch
from onnxscript import ir
from torch import nn

from model import graph, tables
from model.causal import CausalModel
from model.config import GATED, HashedNgrams, LanguageModelConfig, Layer, ModelConfig
from model.gcnn import GCNN, CausalConv
from model.ngrams import MULTIPLIERS, NgramEmbedding
from model.softmax import AdaptiveSoftmax, FullSoftmax

Columns = tuple[int, int] | None
"""From where to where; None for all."""

OPSET = 21
IR_VERSION = 10


class Writer:
    """Writes what every model here has at its ends: weights, linear layers and the softmax.

    Weights are stored in float16 and cast to float32 by the graph, which ONNX Runtime folds at
    load, so that each is stored once; tables that are only looked up are stored in 8 bits.
    """

    domains: ClassVar[dict[str, int]] = {}

    def __init__(
        self, model: CausalModel, config: LanguageModelConfig, inputs: dict[str, ir.Value]
    ) -> None:
        self.output, self.ends = model.output, config
        self.tape = ir.tape.Tape()
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
                initializers=self.tape.initializers,
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
        logprobs = self._of_targets(logprobs, graph.TARGETS)
        count = self._op("Shape", [logprobs])
        room = self._op("Add", [count, self._integers(1)])  # N, and a place for dummies
        zero = ir.tensor(np.zeros(1, np.float32))
        tails = self._op("ConstantOfShape", [room], value=zero)
        for index, module in enumerate(output.tails):
            inside = self._op("Gather", [x, self.inputs[graph.tail_rows_name(index)]])
            own = self._conditional(index, cast(nn.Sequential, module), inside)
            own = self._of_targets(own, graph.tail_targets_name(index))
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
        heads = self._op("Gather", [head, places])
        parts = []
        for index, module in enumerate(output.tails):
            first = self.ends.cutoffs[0] + index
            entry = self._column_range(heads, first, first + 1)
            within = self._conditional(index, cast(nn.Sequential, module), rows)
            parts.append(self._op("Add", [entry, within]))
        tails = parts[0] if len(parts) == 1 else self._op("Concat", parts, axis=1)
        return head, places, tails

    def _paying(self, head: ir.Value) -> ir.Value:
        """The rows of [M, columns] whose tails are wanted, int64 [m]: see `graph.TailTerms`.

        Here other places may give other bits: which rows pay changes no result.
        """
        first, columns = self.ends.cutoffs[0], self.ends.head_columns
        axis = self._integers(1)
        ordinary = self._column_range(head, graph.HELD_TOKENS, first)
        best = self._op("ReduceMax", [ordinary, axis], keepdims=1)
        others = self._integers(*range(graph.HELD_TOKENS), *range(first, columns))
        others = self._op("Gather", [head, others], axis=1)
        likely = self._op("Exp", [self._op("Concat", [best, others], axis=1)])
        terms = self._op("Mul", [likely, self.inputs[graph.TAIL_WEIGHTS]])
        total = self._op("ReduceSum", [terms, axis], keepdims=0)
        paying = self._op("GreaterOrEqual", [total, self.inputs[graph.TAIL_FLOORS]])
        return self._filled(self._reshape(self._op("NonZero", [paying]), -1))

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

    def _of_targets(self, logprobs: ir.Value, targets: str) -> ir.Value:
        """logprobs: [n, columns] to the targets' entries [n]."""
        column = self._op("Unsqueeze", [self.inputs[targets], self._integers(1)])
        return self._reshape(self._op("GatherElements", [logprobs, column], axis=1), -1)

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
            self.constants[values] = self.tape.initializer(tensor, name=name)
        return self.constants[values]

    def _weight(self, name: str, weight: torch.Tensor) -> ir.Value:
        if name not in self.weights:
            self.weights[name] = self._number(self._halves(name, weight))
        return self.weights[name]

    def _rows_of(self, name: str, table: torch.Tensor, rows: ir.Value) -> ir.Value:
        """Rows of a table that is only looked up, float [n, columns]. Made floats when gathered: as
        it is stored, the table is read from the mapped file, which all sessions share."""
        numbers, columns = tables.stored(table)
        stored, scales = self._constant(name, numbers), self._constant(f"{name}_scales", columns)
        found = self._op("Gather", [stored, rows])
        return self._op("DequantizeLinear", [found, scales], axis=-1)

    def _number(self, stored: ir.Value) -> ir.Value:
        """float16 as it is computed with: float32."""
        return self._op("Cast", [stored], to=ir.DataType.FLOAT.value)

    def _halves(self, name: str, weight: torch.Tensor) -> ir.Value:
        """A weight as it is stored, in float16."""
        return self._constant(name, np.ascontiguousarray(weight.detach().half().numpy()))

    def _float(self, name: str, value: torch.Tensor) -> ir.Value:
        return self._constant(name, value.detach().float().numpy())

    def _constant(self, name: str, value: npt.NDArray[np.generic]) -> ir.Value:
        for initializer in self.tape.initializers:
            if initializer.name == name:
                return initializer
        return self.tape.initializer(ir.tensor(value, name=name), name=name)


class FlatGraph(Writer):
    """Builds the ONNX model of a GCNN whose weights are rounded (see `GCNN.stored`)."""

    precision: graph.Precision = "float32"

    def __init__(self, model: GCNN) -> None:
        super().__init__(model, model.config, _inputs(model.config, self.precision))
        self.model, self.config = model, model.config
        self.new_pools: list[ir.Value] = []

    def build(self) -> ir.Model:
        """The complete model."""
        tokens = self.inputs[graph.TOKENS]
        x = self._embedded(tokens)  # [T, E]
        x = self._linear(self.model.input, "input", x)
        x = self._ngrams(x)
        layers = iter(enumerate(self.config.layers()))
        blocks = zip(self.model.blocks, self.config.unrolled(), strict=True)
        for number, (block, (residual, parts)) in enumerate(blocks):
            carried = x = self._clipped(x)
            for conv, _ in zip(cast(nn.ModuleList, block.layers), parts, strict=True):
                x = self._conv(*next(layers), cast(CausalConv, conv), x)
            if residual:
                projection = cast(nn.Linear | None, block.projection)
                carried = self._linear(projection, f"projection_{number}", carried)
                x = self._op("Add", [x, carried])
                if self.config.residual_scale != 1.0:
                    x = self._op("Mul", [x, self._scale()])
        x = self._linear(self.model.head, "head", x)
        outputs = self._outputs(x)
        return self._finished([*outputs, *self.new_pools], "flat_gcnn")

    def _embedded(self, tokens: ir.Value) -> ir.Value:
        """int64 [T] to their vectors [T, E]."""
        weight = self.model.embedding.weight
        if not self.config.tied:
            return self._rows_of("embedding", weight, tokens)
        return self._number(self._op("Gather", [self._halves("embedding", weight), tokens]))

    def _clipped(self, x: ir.Value) -> ir.Value:
        clip = self.config.clip
        if clip is None:
            return x
        bounds = [
            self._float(f"clip_{s}", torch.tensor(v)) for s, v in (("low", -clip), ("high", clip))
        ]
        return self._op("Clip", [x, *bounds])

    def _conv(self, index: int, layer: Layer, conv: CausalConv, x: ir.Value) -> ir.Value:
        """x: [T, C_in] to [T, C_out]; the layer's state goes to the pool."""
        name = f"conv_{index}"
        x = self._stored(name, x)
        if layer.span:
            pool, dilation = graph.pool_name(index), layer.dilation
            frames = self._frames(pool, dilation, layer.kernel - 1, layer.inputs, x)
            taps = self._columns(graph.named(graph.TAPS, dilation), layer.kernel)
            gathered = self._op("Gather", [frames, taps])  # [T, k, C_in]
            x = self._reshape(gathered, 0, layer.kernel * layer.inputs)
        if self.config.gate not in GATED:
            return self._gate(self._product(name, x, conv, name), None)
        # a product for each half: cutting one product in two would be a pass over memory
        n = layer.outputs
        halves = [self._product(name, x, conv, name, part) for part in ((0, n), (n, 2 * n))]
        return self._gate(*halves)

    def _ngrams(self, x: ir.Value) -> ir.Value:
        """x: [T, C], with the embeddings of the n-grams that end at each row added."""
        if not self.config.ngrams:
            return x
        order = self.config.ngram_order
        column = self._op("Unsqueeze", [self.inputs[graph.TOKENS], self._integers(1)])
        column = self._op("Cast", [column], to=ir.DataType.FLOAT.value)
        frames = self._frames(graph.TOKEN_POOL, 1, order - 1, 1, column)
        recent = self._op("Gather", [frames, self._columns(graph.TAPS, order)])  # [T, n, 1]
        recent = self._op("Cast", [recent], to=ir.DataType.INT64.value)
        modules = cast(list[NgramEmbedding], self.model.ngrams)
        for number, (module, config) in enumerate(zip(modules, self.config.ngrams, strict=True)):
            rows = self._hash(recent, config)
            found = self._rows_of(f"ngram_{number}_table", module.table.weight, rows)
            mix = self._weight(f"ngram_{number}_mix", module.mix.weight.T)
            vectors = self._op("MatMul", [found, mix])
            x = self._op("Add", [x, vectors])
        return x

    def _hash(self, recent: ir.Value, config: HashedNgrams) -> ir.Value:
        """recent: int64 [T, n, 1] to rows of the table, int64 [T]."""
        total: ir.Value | None = None
        for place in range(config.order):
            bounds = [self._integers(n) for n in (place, place + 1, 1)]
            token = self._reshape(self._op("Slice", [recent, *bounds]), -1)
            term = self._op("Mul", [token, self._integers(MULTIPLIERS[place])])
            total = term if total is None else self._op("Add", [total, term])
        assert total is not None
        return self._op("Mod", [total, self._integers(config.rows)])

    def _frames(
        self, pool_name: str, dilation: int, ages: int, channels: int, x: ir.Value
    ) -> ir.Value:
        """H: [1 + T + ages * S, C]; writes the states of this batch into the pool."""
        read, write, carry = (
            graph.named(name, dilation)
            for name in (graph.READ_SLOTS, graph.WRITE_SLOTS, graph.CARRY)
        )
        pool = self.inputs[pool_name]
        states = self._op("Gather", [pool, self.inputs[read]])  # [S, ages, C]
        if ages > 1:
            states = self._op("Transpose", [states], perm=[1, 0, 2])
        states = self._reshape(states, -1, channels)  # [ages * S, C]
        zero = self._zero_row(pool_name, channels)
        frames = self._op("Concat", [zero, x, states], axis=0)
        carried = self._op("Gather", [frames, self._columns(carry, ages)])  # [W, ages, C]
        slots = self._op("Unsqueeze", [self.inputs[write], self._integers(1)])  # [W, 1]
        new = self._op("ScatterND", [pool, slots, carried])
        new.name = graph.new_pool_name(pool_name)
        new.shape, new.type = pool.shape, pool.type
        self.new_pools.append(new)
        return frames

    def _zero_row(self, pool_name: str, channels: int) -> ir.Value:
        """[1, channels]: zeros as the pool's frames are stored."""
        return self._float(f"zero_{channels}", torch.zeros(1, channels))

    def _gate(self, a: ir.Value, b: ir.Value | None) -> ir.Value:
        """a, and b in gates of two halves: [T, C] to [T, C] (see `model.gates`)."""
        gate = self.config.gate
        if gate in ("tanh", "relu"):
            a = self._op({"tanh": "Tanh", "relu": "Relu"}[gate], [a])
        if b is None:
            return a
        if gate == "gtu":
            a = self._op("Tanh", [a])
        if gate != "bilinear":
            b = self._op("Sigmoid", [b])
        return self._op("Mul", [a, b])

    def _outputs(self, x: ir.Value) -> list[ir.Value]:
        """Log-probabilities of the targets [N], and of every next token [M, V].

        With an adaptive softmax those of its head [M, columns], and what `_following` adds.
        """
        x = self._stored("output", x)
        scored = self._op("Gather", [x, self.inputs[graph.SCORE_ROWS]])
        wanted = self._op("Gather", [x, self.inputs[graph.NEXT_ROWS]])
        if self.config.cutoffs:
            logprobs = self._adaptive(x, scored)
            following, places, tails = self._following(wanted)
        else:
            logprobs = self._of_targets(self._full(scored), graph.TARGETS)
            following = self._full(wanted)
        for value, name in ((logprobs, graph.LOGPROBS), (following, graph.NEXT_LOGPROBS)):
            value.name, value.dtype = name, ir.DataType.FLOAT
        logprobs.shape = ir.Shape(["N"])
        following.shape = ir.Shape(["M", self.config.head_columns])
        if not self.config.cutoffs:
            return [logprobs, following]
        places.name, places.dtype = graph.NEXT_PLACES, ir.DataType.INT64
        tails.name, tails.dtype = graph.NEXT_TAILS, ir.DataType.FLOAT
        places.shape = ir.Shape(["m"])
        tails.shape = ir.Shape(["m", self.config.vocabulary - self.config.cutoffs[0]])
        return [logprobs, following, places, tails]

    def _columns(self, name: str, count: int) -> ir.Value:
        """The first `count` columns of an index table."""
        table = self.inputs[name]
        assert table.shape is not None
        return table if table.shape[1] == count else self._column_range(table, 0, count)

    def _scale(self) -> ir.Value:
        return self._float("residual_scale", torch.tensor(self.config.residual_scale))


def _inputs(config: ModelConfig, precision: graph.Precision) -> dict[str, ir.Value]:
    indices: dict[str, list[str | int]] = {
        graph.TOKENS: ["T"],
        graph.SCORE_ROWS: ["N"],
        graph.TARGETS: ["N"],
        graph.NEXT_ROWS: ["M"],
    }
    for dilation, columns in config.taps:
        read, written = (graph.named(count, dilation) for count in ("S", "W"))
        indices |= {
            graph.named(graph.TAPS, dilation): ["T", columns],
            graph.named(graph.READ_SLOTS, dilation): [read],
            graph.named(graph.WRITE_SLOTS, dilation): [written],
            graph.named(graph.CARRY, dilation): [written, columns - 1],
        }
    for tail in range(len(config.tails)):
        for named in (graph.tail_rows_name, graph.tail_targets_name, graph.tail_places_name):
            indices[named(tail)] = [f"tail_{tail}"]
    values = {
        name: ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.INT64))
        for name, shape in indices.items()
    }
    if config.cutoffs:
        terms = 1 + graph.HELD_TOKENS + len(config.tails)
        shapes: dict[str, list[str | int]] = {
            graph.TAIL_WEIGHTS: ["M", terms],
            graph.TAIL_FLOORS: ["M"],
        }
        for name, dimensions in shapes.items():
            kind = ir.TensorType(ir.DataType.FLOAT)
            values[name] = ir.Value(name=name, shape=ir.Shape(dimensions), type=kind)
    for name, pool in graph.pools(config, precision).items():
        shape = ir.Shape([graph.named("P", pool.dilation), pool.ages, pool.channels])
        kind = ir.TensorType(ir.DataType.from_numpy(np.dtype(pool.dtype)))
        values[name] = ir.Value(name=name, shape=shape, type=kind)
    return values
