"""The flat graph, written op by op from a model's weights (interface: `model.core.graph`)."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from onnxscript import ir
from torch import nn

from model.architecture import rounding as tables
from model.architecture.gcnn import GCNN, CausalConv
from model.architecture.hashed_ngrams import MULTIPLIERS, NgramEmbedding
from model.core import graph
from model.core.config import GATED, HashedNgrams, Layer, ModelConfig
from model.export.graph_writer import LISTED, Writer


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
        if not self.config.tied or tables.bytes_of(weight) is not None:
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
        """a, and b in gates of two halves: [T, C] to [T, C] (see `model.architecture.gates`)."""
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
        """Log-probabilities of the targets [N], and of every next token [M, V], and the lists.

        With an adaptive softmax those of its head [M, columns], and what `_following` adds.
        """
        x = self._stored("output", x)
        scored = self._op("Gather", [x, self.inputs[graph.SCORE_ROWS]])
        wanted = self._op("Gather", [x, self.inputs[graph.NEXT_ROWS]])
        if self.config.cutoffs:
            logprobs = self._adaptive(x, scored)
            following, places, tails = self._following(wanted)
        else:
            logprobs = self._of_targets(self._full(scored), self.inputs[graph.TARGETS])
            following = self._full(wanted)
        for value, name in ((logprobs, graph.LOGPROBS), (following, graph.NEXT_LOGPROBS)):
            value.name, value.dtype = name, ir.DataType.FLOAT
        logprobs.shape = ir.Shape(["N"])
        following.shape = ir.Shape(["M", self.config.head_columns])
        listed = self._listed(x)
        for value, name, (kind, shape) in zip(listed, graph.LISTED, LISTED, strict=True):
            value.name, value.dtype, value.shape = name, kind, ir.Shape(["turns", *shape])
        if not self.config.cutoffs:
            return [logprobs, following, *listed]
        places.name, places.dtype = graph.NEXT_PLACES, ir.DataType.INT64
        tails.name, tails.dtype = graph.NEXT_TAILS, ir.DataType.FLOAT
        places.shape = ir.Shape(["m"])
        tails.shape = ir.Shape(["m", self.config.vocabulary - self.config.cutoffs[0]])
        return [logprobs, following, places, tails, *listed]

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
        graph.LIST_ROWS: ["L"],
        graph.LIST_TARGETS: ["L"],
        graph.LIST_COUNT: [1],
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
