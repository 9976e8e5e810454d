"""The padded float32 graph that generic servers run: rectangles of texts, in the usual layout.

Whatever a padded graph can leave out is left out: the softmax sees no padding, a tail only the rows
whose target it holds, and nothing of the vocabulary's width comes out.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from onnxscript import ir
from torch import nn

from model.architecture.gcnn import GCNN, CausalConv
from model.architecture.hashed_ngrams import MULTIPLIERS, NgramEmbedding
from model.architecture.softmax import AdaptiveSoftmax
from model.core.config import GATED, HashedNgrams, Layer
from model.core.graph import LOGPROBS, TARGETS, TOKENS
from model.export.flat import FlatGraph

_END = 2**31 - 1


class PaddedGraph(FlatGraph):
    """Builds the ONNX model of a GCNN whose weights are rounded on rectangles.

    tokens, targets: int64 [B, N], targets -1 in the padding behind a text; logprobs: float32
    [B, N], nats, 0 in padding. A row is one text: a start symbol inside has no meaning of its own.
    """

    def __init__(self, model: GCNN) -> None:
        super().__init__(model)
        kind = ir.TensorType(ir.DataType.INT64)
        self.inputs = {
            name: ir.Value(name=name, shape=ir.Shape(["B", "N"]), type=kind)
            for name in (TOKENS, TARGETS)
        }

    def _rows_of(self, name: str, table: torch.Tensor, rows: ir.Value) -> ir.Value:
        """As float32: a bundle's tables may be stored in float16 or in bytes."""
        return self._op("Gather", [self._float(name, table), rows])

    def _conv(self, index: int, layer: Layer, conv: CausalConv, x: ir.Value) -> ir.Value:
        """x: [B, N, C_in] to [B, N, C_out]: one product of the frames side by side."""
        name = f"conv_{index}"
        if layer.span:
            backs = range(0, layer.span + 1, layer.dilation)
            x = self._op("Concat", self._shifted(x, backs, rank=3), axis=-1)  # [B, N, k * C_in]
        if self.config.gate not in GATED:
            return self._gate(self._product(name, x, conv, name), None)
        n = layer.outputs
        halves = [self._product(name, x, conv, name, part) for part in ((0, n), (n, 2 * n))]
        return self._gate(*halves)

    def _ngrams(self, x: ir.Value) -> ir.Value:
        """x: [B, N, C], with the embeddings of the n-grams that end at each token added."""
        if not self.config.ngrams:
            return x
        recent = self._shifted(self.inputs[TOKENS], range(self.config.ngram_order), rank=2)
        modules = cast(list[NgramEmbedding], self.model.ngrams)
        for number, (module, config) in enumerate(zip(modules, self.config.ngrams, strict=True)):
            rows = self._table_rows(recent, config)
            vectors = self._rows_of(f"ngram_{number}_table", module.table.weight, rows)
            mix = self._weight(f"ngram_{number}_mix", module.mix.weight.T)
            x = self._op("Add", [x, self._op("MatMul", [vectors, mix])])
        return x

    def _table_rows(self, recent: list[ir.Value], config: HashedNgrams) -> ir.Value:
        """recent: the token and those before it, int64 [B, N] each, to int64 [B, N]."""
        total: ir.Value | None = None
        for token, factor in zip(recent[: config.order], MULTIPLIERS, strict=False):
            term = self._op("Mul", [token, self._integers(factor)])
            total = term if total is None else self._op("Add", [total, term])
        assert total is not None
        return self._op("Mod", [total, self._integers(config.rows)])

    def _shifted(self, x: ir.Value, backs: range, rank: int) -> list[ir.Value]:
        """x: [B, N, ...] as it was so many tokens before, each, zeros in front."""
        span = backs[-1]
        padded = self._op("Pad", [x, self._integers(0, span, *[0] * (2 * rank - 2))])
        bounds = [(span - back, -back if back else _END, 1) for back in backs]
        return [self._op("Slice", [padded, *map(self._integers, bound)]) for bound in bounds]

    def _outputs(self, x: ir.Value) -> list[ir.Value]:
        """x: [B, N, C] to the targets' log-probabilities [B, N]."""
        every = self._reshape(self.inputs[TARGETS], -1)
        rows = self._places(self._op("GreaterOrEqual", [every, self._integers(0)]))
        targets = self._op("Gather", [every, rows])
        x = self._op("Gather", [self._reshape(x, -1, self.config.head_width), rows])
        if self.config.cutoffs:
            found = self._clusters(x, targets)
        else:
            found = self._entries(self._full(x), targets)
        zero = ir.tensor(np.zeros(1, np.float32))
        none = self._op("ConstantOfShape", [self._op("Shape", [every])], value=zero)
        found = self._op("ScatterElements", [none, rows, found], axis=0)
        logprobs = self._op("Reshape", [found, self._op("Shape", [self.inputs[TARGETS]])])
        logprobs.name, logprobs.dtype = LOGPROBS, ir.DataType.FLOAT
        logprobs.shape = ir.Shape(["B", "N"])
        return [logprobs]

    def _clusters(self, x: ir.Value, targets: ir.Value) -> ir.Value:
        """An adaptive softmax. x: [n, C], targets: int64 [n], to log-probabilities [n]."""
        output = cast(AdaptiveSoftmax, self.output)
        columns, insides = targets, []
        for index, tail in enumerate(self.config.tails):
            above = self._op("GreaterOrEqual", [targets, self._integers(tail.low)])
            below = self._op("Less", [targets, self._integers(tail.high)])
            inside = self._op("And", [above, below])
            entry = self._integers(self.config.cutoffs[0] + index)
            columns = self._op("Where", [inside, entry, columns])
            insides.append(self._places(inside))
        found = self._entries(self._softmax("head_columns", x, output.head, "output"), columns)
        for index, (tail, rows) in enumerate(zip(self.config.tails, insides, strict=True)):
            module = cast(nn.Sequential, output.tails[index])
            within = self._conditional(index, module, self._op("Gather", [x, rows]))
            own = self._op("Sub", [self._op("Gather", [targets, rows]), self._integers(tail.low)])
            inner = self._entries(within, own)
            found = self._op("ScatterElements", [found, rows, inner], axis=0, reduction="add")
        return found

    def _entries(self, logprobs: ir.Value, columns: ir.Value) -> ir.Value:
        """logprobs: [n, V], columns: int64 [n], to [n]."""
        column = self._op("Unsqueeze", [columns, self._integers(1)])
        return self._reshape(self._op("GatherElements", [logprobs, column], axis=1), -1)

    def _places(self, mask: ir.Value) -> ir.Value:
        """Where a bool [n] is true, int64 [m]."""
        return self._reshape(self._op("NonZero", [mask]), -1)
