"""The padded float32 graph that generic servers run: rectangles of texts, in the usual layout.

Whatever a padded graph can leave out is left out: the softmax sees no padding, a tail only the rows
whose target it holds, and nothing of the vocabulary's width comes out.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from onnxscript import ir

from model.architecture.causal import MULTIPLIERS, NgramEmbedding
from model.architecture.gcnn import GCNN, CausalConv
from model.core import weight_names
from model.core.config import HashedNgrams, Layer
from model.core.graph import LOGPROBS, TARGETS, TOKENS
from model.export.arithmetic import Arithmetic
from model.export.flat import FlatGraph
from model.export.nodes import Nodes, described, value
from model.export.weights import Weights

_END = 2**31 - 1


class _Float32Tables(Weights):
    """Tables as float32: a bundle's may be stored in float16 or in bytes."""

    def rows(self, name: str, table: torch.Tensor, rows: ir.Value) -> ir.Value:
        """See `Weights.rows`."""
        return self.nodes.op("Gather", [self.vector(name, table), rows])


class PaddedGraph(FlatGraph):
    """Builds the ONNX model of a GCNN whose weights are rounded on rectangles.

    tokens, targets: int64 [B, N], targets -1 in the padding behind a text; logprobs: float32
    [B, N], nats, 0 in padding. A row is one text: a start symbol inside has no meaning of its own.
    """

    def __init__(self, model: GCNN) -> None:
        nodes = Nodes(
            {name: value(name, ir.DataType.INT64, ["B", "N"]) for name in (TOKENS, TARGETS)}
        )
        arithmetic = Arithmetic(nodes)
        arithmetic.weights = _Float32Tables(nodes)
        super().__init__(model, arithmetic)

    def _conv(self, index: int, layer: Layer, conv: CausalConv, x: ir.Value) -> ir.Value:
        """x: [B, N, C_in] to [B, N, C_out]: one product of the frames side by side."""
        name = weight_names.convolution(index)
        if layer.span:
            backs = range(0, layer.span + 1, layer.dilation)
            x = self.nodes.op(
                "Concat", self._shifted(x, backs, rank=3), axis=-1
            )  # [B, N, k * C_in]
        return self._gated(name, conv, x, layer.outputs)

    def _ngrams(self, x: ir.Value) -> ir.Value:
        """x: [B, N, C], with the embeddings of the n-grams that end at each token added."""
        if not self.config.ngrams:
            return x
        recent = self._shifted(self.nodes.inputs[TOKENS], range(self.config.ngram_order), rank=2)
        modules = cast(list[NgramEmbedding], self.model.ngrams)
        for number, (module, config) in enumerate(zip(modules, self.config.ngrams, strict=True)):
            rows = self._table_rows(recent, config)
            vectors = self.weights.rows(weight_names.ngram_table(number), module.table.weight, rows)
            mix = self.weights.matrix(weight_names.ngram_mix(number), module.mix.weight.T)
            x = self.nodes.op("Add", [x, self.nodes.op("MatMul", [vectors, mix])])
        return x

    def _table_rows(self, recent: list[ir.Value], config: HashedNgrams) -> ir.Value:
        """recent: the token and those before it, int64 [B, N] each, to int64 [B, N]."""
        total: ir.Value | None = None
        for token, factor in zip(recent[: config.order], MULTIPLIERS, strict=False):
            term = self.nodes.op("Mul", [token, self.nodes.integers(factor)])
            total = term if total is None else self.nodes.op("Add", [total, term])
        assert total is not None
        return self.nodes.op("Mod", [total, self.nodes.integers(config.rows)])

    def _shifted(self, x: ir.Value, backs: range, rank: int) -> list[ir.Value]:
        """x: [B, N, ...] as it was so many tokens before, each, zeros in front."""
        span = backs[-1]
        padded = self.nodes.op("Pad", [x, self.nodes.integers(0, span, *[0] * (2 * rank - 2))])
        bounds = [(span - back, -back if back else _END, 1) for back in backs]
        return [
            self.nodes.op("Slice", [padded, *map(self.nodes.integers, bound)]) for bound in bounds
        ]

    def _outputs(self, x: ir.Value) -> list[ir.Value]:
        """x: [B, N, C] to the targets' log-probabilities [B, N]."""
        every = self.nodes.reshape(self.nodes.inputs[TARGETS], -1)
        rows = self._places(self.nodes.op("GreaterOrEqual", [every, self.nodes.integers(0)]))
        targets = self.nodes.op("Gather", [every, rows])
        x = self.nodes.op("Gather", [self.nodes.reshape(x, -1, self.config.head_width), rows])
        if self.config.cutoffs:
            found = self._clusters(x, targets)
        else:
            found = self.softmax.entries(self.softmax.full(x), targets)
        zero = ir.tensor(np.zeros(1, np.float32))
        none = self.nodes.op("ConstantOfShape", [self.nodes.op("Shape", [every])], value=zero)
        found = self.nodes.op("ScatterElements", [none, rows, found], axis=0)
        logprobs = self.nodes.op(
            "Reshape", [found, self.nodes.op("Shape", [self.nodes.inputs[TARGETS]])]
        )
        return [described(logprobs, LOGPROBS, ir.DataType.FLOAT, ["B", "N"])]

    def _clusters(self, x: ir.Value, targets: ir.Value) -> ir.Value:
        """An adaptive softmax. x: [n, C], targets: int64 [n], to log-probabilities [n]."""
        columns, insides = targets, []
        for index, tail in enumerate(self.config.tails):
            above = self.nodes.op("GreaterOrEqual", [targets, self.nodes.integers(tail.low)])
            below = self.nodes.op("Less", [targets, self.nodes.integers(tail.high)])
            inside = self.nodes.op("And", [above, below])
            entry = self.nodes.integers(self.config.cutoffs[0] + index)
            columns = self.nodes.op("Where", [inside, entry, columns])
            insides.append(self._places(inside))
        found = self.softmax.entries(self.softmax.head(x), columns)
        for index, (tail, rows) in enumerate(zip(self.config.tails, insides, strict=True)):
            within = self.softmax.tail_logprobs(index, self.nodes.op("Gather", [x, rows]))
            own = self.nodes.op(
                "Sub", [self.nodes.op("Gather", [targets, rows]), self.nodes.integers(tail.low)]
            )
            inner = self.softmax.entries(within, own)
            found = self.nodes.op("ScatterElements", [found, rows, inner], axis=0, reduction="add")
        return found

    def _places(self, mask: ir.Value) -> ir.Value:
        """Where a bool [n] is true, int64 [m]."""
        return self.nodes.reshape(self.nodes.op("NonZero", [mask]), -1)
