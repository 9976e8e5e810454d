"""The flat graph, written op by op from a model's weights (interface: `model.core.graph`)."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from onnxscript import ir
from torch import nn

from model.architecture.causal import MULTIPLIERS, NgramEmbedding
from model.architecture.gcnn import GCNN, CausalConv
from model.core import graph, weight_names
from model.core.config import HashedNgrams, Layer, ModelConfig
from model.core.gates import GATES, IDENTITY, Function
from model.export.arithmetic import Arithmetic
from model.export.nodes import Nodes, described, value
from model.export.softmax_graph import ALTERNATIVES, SoftmaxGraph, tail_inputs


def float_graph(model: GCNN, arithmetic: type[Arithmetic] = Arithmetic) -> ir.Model:
    """The ONNX model in float32 or float16 of a GCNN whose weights are rounded (`GCNN.stored`).

    Both store the same weights.
    """
    nodes = Nodes(graph_inputs(model.config, arithmetic.precision))
    return FlatGraph(model, arithmetic(nodes)).build()


class FlatGraph:
    """Builds the ONNX model of a GCNN whose weights are rounded (see `GCNN.stored`).

    arithmetic: created on an empty `Nodes(graph_inputs(...))`.
    """

    def __init__(self, model: GCNN, arithmetic: Arithmetic) -> None:
        self.model, self.config = model, model.config
        self.arithmetic = arithmetic
        self.nodes, self.weights = arithmetic.nodes, arithmetic.weights
        self.softmax = SoftmaxGraph(model.output, model.config, arithmetic)
        self.new_pools: list[ir.Value] = []

    def build(self) -> ir.Model:
        """The complete model."""
        lookup = self.weights.matrix_rows if self.config.tied else self.weights.rows
        tokens = self.nodes.inputs[graph.TOKENS]
        x = lookup(weight_names.EMBEDDING, self.model.embedding.weight, tokens)  # [T, E]
        x = self.arithmetic.linear(weight_names.INPUT, self.model.input, x)
        x = self._ngrams(x)
        layers = iter(enumerate(self.config.layers()))
        for number, (block, (residual, _)) in enumerate(
            zip(self.model.blocks, self.config.unrolled(), strict=True)
        ):
            carried = x = self._clipped(x)
            for conv in cast(nn.ModuleList, block.layers):
                x = self._conv(*next(layers), cast(CausalConv, conv), x)
            if residual:
                shortcut = cast(nn.Linear | None, block.projection)
                carried = self.arithmetic.linear(weight_names.shortcut(number), shortcut, carried)
                x = self._scaled(self.nodes.op("Add", [x, carried]))
        x = self.arithmetic.linear(weight_names.HEAD, self.model.head, x)
        outputs = [*self._outputs(x), *self.new_pools]
        return self.nodes.model(outputs, "flat_gcnn", self.arithmetic.domains)

    def _clipped(self, x: ir.Value) -> ir.Value:
        clip = self.config.clip
        if clip is None:
            return x
        low, high = (
            self.weights.vector(f"clip_{end}", torch.tensor(bound))
            for end, bound in (("low", -clip), ("high", clip))
        )
        return self.nodes.op("Clip", [x, low, high])

    def _scaled(self, x: ir.Value) -> ir.Value:
        """A residual sum, multiplied by the model's factor."""
        factor = self.config.residual_scale
        if factor == 1.0:
            return x
        scale = self.weights.vector("residual_scale", torch.tensor(factor))
        return self.nodes.op("Mul", [x, scale])

    def _conv(self, index: int, layer: Layer, conv: CausalConv, x: ir.Value) -> ir.Value:
        """x: [T, C_in] to [T, C_out]; the layer's state goes to the pool."""
        name = weight_names.convolution(index)
        x = self.arithmetic.stored(name, x)
        if layer.span:
            pool, dilation = graph.pool_name(index), layer.dilation
            frames = self._frames(pool, dilation, layer.kernel - 1, layer.inputs, x)
            taps = self._table_columns(graph.dilated_name(graph.TAPS, dilation), layer.kernel)
            gathered = self.nodes.op("Gather", [frames, taps])  # [T, k, C_in]
            x = self.nodes.reshape(gathered, 0, layer.kernel * layer.inputs)
        return self._gated(name, conv, x, layer.outputs)

    def _gated(self, name: str, conv: CausalConv, x: ir.Value, channels: int) -> ir.Value:
        """x: frames side by side [T, k * C_in] to [T, C_out] (see `model.core.gates`).

        A product for each half: cutting one product in two would be a pass over memory.
        """
        gate = GATES[self.config.gate]
        if gate.second is None:
            return self._function(gate.first, self.arithmetic.product(name, x, conv, name))
        a, b = (
            self.arithmetic.product(name, x, conv, name, half)
            for half in ((0, channels), (channels, 2 * channels))
        )
        return self.nodes.op("Mul", [self._function(gate.first, a), self._function(gate.second, b)])

    def _function(self, name: Function, x: ir.Value) -> ir.Value:
        return x if name == IDENTITY else self.nodes.op(name, [x])

    def _ngrams(self, x: ir.Value) -> ir.Value:
        """x: [T, C], with the embeddings of the n-grams that end at each row added."""
        if not self.config.ngrams:
            return x
        order = self.config.ngram_order
        column = self.nodes.op(
            "Unsqueeze", [self.nodes.inputs[graph.TOKENS], self.nodes.integers(1)]
        )
        column = self.nodes.op("Cast", [column], to=ir.DataType.FLOAT.value)
        frames = self._frames(graph.TOKEN_POOL, 1, order - 1, 1, column)
        taps = self._table_columns(graph.TAPS, order)
        recent = self.nodes.op("Gather", [frames, taps])  # [T, n, 1]
        recent = self.nodes.op("Cast", [recent], to=ir.DataType.INT64.value)
        for number, module in enumerate(cast(list[NgramEmbedding], self.model.ngrams)):
            rows = self._hash(recent, module.config)
            table, mix = weight_names.ngram_table(number), weight_names.ngram_mix(number)
            vectors = self.weights.rows(table, module.table.weight, rows)
            vectors = self.nodes.op(
                "MatMul", [vectors, self.weights.matrix(mix, module.mix.weight.T)]
            )
            x = self.nodes.op("Add", [x, vectors])
        return x

    def _hash(self, recent: ir.Value, config: HashedNgrams) -> ir.Value:
        """recent: int64 [T, n, 1] to rows of the table, int64 [T]."""
        total: ir.Value | None = None
        for back in range(config.order):
            token = self.nodes.reshape(self.nodes.columns(recent, back, back + 1), -1)
            term = self.nodes.op("Mul", [token, self.nodes.integers(MULTIPLIERS[back])])
            total = term if total is None else self.nodes.op("Add", [total, term])
        assert total is not None
        return self.nodes.op("Mod", [total, self.nodes.integers(config.rows)])

    def _frames(
        self, pool_name: str, dilation: int, ages: int, channels: int, x: ir.Value
    ) -> ir.Value:
        """H: [1 + T + ages * S, C]; writes the states of this batch into the pool."""
        read, write, carry = (
            graph.dilated_name(name, dilation)
            for name in (graph.READ_SLOTS, graph.WRITE_SLOTS, graph.CARRY)
        )
        pool = self.nodes.inputs[pool_name]
        states = self.nodes.op("Gather", [pool, self.nodes.inputs[read]])  # [S, ages, C]
        if ages > 1:
            states = self.nodes.op("Transpose", [states], perm=[1, 0, 2])
        states = self.nodes.reshape(states, -1, channels)  # [ages * S, C]
        zero = self.arithmetic.zero_row(pool_name, channels)
        frames = self.nodes.op("Concat", [zero, x, states], axis=0)
        carried = self._table_columns(carry, ages)
        carried = self.nodes.op("Gather", [frames, carried])  # [W, ages, C]
        slots = self.nodes.inputs[write]
        slots = self.nodes.op("Unsqueeze", [slots, self.nodes.integers(1)])  # [W, 1]
        new = self.nodes.op("ScatterND", [pool, slots, carried])
        new.name = graph.new_pool_name(pool_name)
        new.shape, new.type = pool.shape, pool.type
        self.new_pools.append(new)
        return frames

    def _table_columns(self, name: str, count: int) -> ir.Value:
        """The first `count` columns of an index table."""
        table = self.nodes.inputs[name]
        assert table.shape is not None
        return table if table.shape[1] == count else self.nodes.columns(table, 0, count)

    def _outputs(self, x: ir.Value) -> list[ir.Value]:
        """x: [T, C] to log-probabilities of the targets and of the next tokens, and the outputs
        for rows with alternatives."""
        x = self.arithmetic.stored(weight_names.OUTPUT, x)
        scored = self.nodes.op("Gather", [x, self.nodes.inputs[graph.SCORE_ROWS]])
        wanted = self.nodes.op("Gather", [x, self.nodes.inputs[graph.NEXT_ROWS]])
        logprobs = self.softmax.target_logprobs(x, scored)
        outputs = [described(logprobs, graph.LOGPROBS, ir.DataType.FLOAT, ["N"])]
        outputs += self._next_outputs(wanted)
        alternatives, names = self.softmax.alternatives(x), graph.ALTERNATIVE_OUTPUTS
        for made, name, (kind, shape) in zip(alternatives, names, ALTERNATIVES, strict=True):
            outputs.append(described(made, name, kind, ["turns", *shape]))
        return outputs

    def _next_outputs(self, wanted: ir.Value) -> list[ir.Value]:
        """wanted: stored rows [M, C] to their next tokens' log-probabilities [M, V]. Of an adaptive
        softmax to those of its head, and what `SoftmaxGraph.next_distributions` adds."""
        shape: list[str | int] = ["M", self.config.head_columns]
        if not self.config.cutoffs:
            logprobs = self.softmax.full(wanted)
            return [described(logprobs, graph.NEXT_LOGPROBS, ir.DataType.FLOAT, shape)]
        head, paying, tails = self.softmax.next_distributions(wanted)
        tokens = self.config.vocabulary - self.config.cutoffs[0]
        return [
            described(head, graph.NEXT_LOGPROBS, ir.DataType.FLOAT, shape),
            described(paying, graph.NEXT_TAIL_ROWS, ir.DataType.INT64, ["m"]),
            described(tails, graph.NEXT_TAILS, ir.DataType.FLOAT, ["m", tokens]),
        ]


def graph_inputs(config: ModelConfig, precision: graph.Precision) -> dict[str, ir.Value]:
    """The inputs of the flat graph, by name."""
    shapes: dict[str, list[str | int]] = {
        graph.TOKENS: ["T"],
        graph.SCORE_ROWS: ["N"],
        graph.TARGETS: ["N"],
        graph.NEXT_ROWS: ["M"],
        graph.ALTERNATIVE_ROWS: ["L"],
        graph.ALTERNATIVE_TARGETS: ["L"],
        graph.ALTERNATIVE_COUNT: [1],
    }
    for dilation, columns in config.taps:
        read, written = (graph.dilated_name(count, dilation) for count in ("S", "W"))
        shapes |= {
            graph.dilated_name(graph.TAPS, dilation): ["T", columns],
            graph.dilated_name(graph.READ_SLOTS, dilation): [read],
            graph.dilated_name(graph.WRITE_SLOTS, dilation): [written],
            graph.dilated_name(graph.CARRY, dilation): [written, columns - 1],
        }
    shapes |= tail_inputs(config)
    values = {name: value(name, ir.DataType.INT64, shape) for name, shape in shapes.items()}
    if config.cutoffs:
        terms = 1 + graph.HELD_TOKENS + len(config.tails)
        kind = ir.DataType.FLOAT
        values[graph.TAIL_WEIGHTS] = value(graph.TAIL_WEIGHTS, kind, ["M", terms])
        values[graph.TAIL_FLOORS] = value(graph.TAIL_FLOORS, kind, ["M"])
    for name, pool in graph.pools(config, precision).items():
        kind = ir.DataType.from_numpy(np.dtype(pool.dtype))
        slots = graph.dilated_name("P", pool.dilation)
        values[name] = value(name, kind, [slots, pool.ages, pool.channels])
    return values
