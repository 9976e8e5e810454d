"""The softmax of a graph, full or adaptive: of targets, of next tokens, and with alternatives.

Legend: n rows, C channels, V vocabulary. An adaptive softmax's head has `columns` entries.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from onnxscript import ir
from torch import nn

from model.architecture.softmax import AdaptiveSoftmax, FullSoftmax
from model.core import graph
from model.core.config import LanguageModelConfig
from model.core.weight_names import EMBEDDING, HEAD_COLUMNS, OUTPUT, tail_in, tail_out
from model.export.arithmetic import Arithmetic

ALTERNATIVES: tuple[tuple[ir.DataType, list[str | int]], ...] = (
    (ir.DataType.FLOAT, [graph.ALTERNATIVE_ROWS_AT_ONCE]),
    (ir.DataType.FLOAT, [graph.ALTERNATIVE_ROWS_AT_ONCE]),
    (ir.DataType.INT64, [graph.ALTERNATIVE_ROWS_AT_ONCE, "k"]),
    (ir.DataType.FLOAT, [graph.ALTERNATIVE_ROWS_AT_ONCE, "k"]),
)
"""Types and shapes of the outputs `graph.ALTERNATIVE_OUTPUTS` for one turn of the loop."""


class SoftmaxGraph:
    """Writes the nodes of a softmax, which read rows stored as `OUTPUT`."""

    def __init__(
        self,
        softmax: FullSoftmax | AdaptiveSoftmax,
        config: LanguageModelConfig,
        arithmetic: Arithmetic,
    ) -> None:
        self.softmax, self.config, self.arithmetic = softmax, config, arithmetic
        self.nodes, self.weights = arithmetic.nodes, arithmetic.weights

    def full(self, x: ir.Value) -> ir.Value:
        """x: stored rows [n, C] to the log-probabilities of a full softmax, [n, V]."""
        layer = cast(FullSoftmax, self.softmax)
        if self.config.tied:
            self.weights.tie(OUTPUT, EMBEDDING, layer.weight)
        return self.logprobs(OUTPUT, x, layer, OUTPUT)

    def head(self, x: ir.Value) -> ir.Value:
        """x: stored rows [n, C] to the log-probabilities of an adaptive softmax's head,
        [n, columns]."""
        return self.logprobs(HEAD_COLUMNS, x, cast(AdaptiveSoftmax, self.softmax).head, OUTPUT)

    def target_logprobs(self, x: ir.Value, scored: ir.Value) -> ir.Value:
        """x: all stored rows [n, C] and those with targets, [N, C], to the targets'
        log-probabilities [N]. Of an adaptive softmax only rows whose target is in a tail pay for
        that tail."""
        targets = self.nodes.inputs[graph.TARGETS]
        if not self.config.cutoffs:
            return self.entries(self.full(scored), targets)
        logprobs = self.entries(self.head(scored), targets)
        count = self.nodes.op("Shape", [logprobs])
        room = self.nodes.op("Add", [count, self.nodes.integers(1)])  # the last is for dummies
        zero = ir.tensor(np.zeros(1, np.float32))
        sums = self.nodes.op("ConstantOfShape", [room], value=zero)
        for index in range(len(self.config.tails)):
            rows = self.nodes.op("Gather", [x, self.nodes.inputs[graph.tail_rows_name(index)]])
            within = self.tail_logprobs(index, rows)
            within = self.entries(within, self.nodes.inputs[graph.tail_targets_name(index)])
            positions = self.nodes.inputs[graph.tail_positions_name(index)]
            sums = self.nodes.op("ScatterElements", [sums, positions, within], axis=0)
        first = self.nodes.integers(0)
        return self.nodes.op("Add", [logprobs, self.nodes.op("Slice", [sums, first, count, first])])

    def next_distributions(self, wanted: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """wanted: stored rows [M, C] to the head's log-probabilities [M, columns], the numbers of
        the rows that pay for the tails [m], and these rows' tokens of all tails, [m, tokens].

        A token's is the same sum of a head's and a tail's entry as a target's, to the bit.
        """
        head = self.head(wanted)
        paying = self._rows_paying_for_tails(head)
        rows = self.nodes.op("Gather", [wanted, paying])
        parts = self._tails(rows, self.nodes.op("Gather", [head, paying]))
        tails = parts[0] if len(parts) == 1 else self.nodes.op("Concat", parts, axis=1)
        return head, paying, tails

    def alternatives(self, x: ir.Value) -> list[ir.Value]:
        """x: all stored rows [T, C] to `graph.ALTERNATIVE_OUTPUTS`.

        A few rows a turn, so that their distributions stay in the processor's cache. All other
        nodes of the softmax are written before: its weights are read outside of the loop.
        """
        size = self.nodes.integers(graph.ALTERNATIVE_ROWS_AT_ONCE)
        rows = self.nodes.op("Shape", [self.nodes.inputs[graph.ALTERNATIVE_ROWS]])
        turns = self.nodes.op("Squeeze", [self.nodes.op("Div", [rows, size])])
        return self.nodes.loop(turns, lambda turn: self._alternatives(x, turn, size), "listing")

    def tail_logprobs(self, index: int, x: ir.Value) -> ir.Value:
        """x: stored rows [n, C] to log-probabilities within a tail, [n, columns]."""
        tail = cast(nn.Sequential, cast(AdaptiveSoftmax, self.softmax).tails[index])
        narrow, wide = (cast(nn.Linear, layer) for layer in tail)
        name = tail_out(index)
        inner = self.arithmetic.product(tail_in(index), x, narrow, OUTPUT)
        return self.logprobs(name, self.arithmetic.stored(name, inner), wide, name)

    def logprobs(self, name: str, x: ir.Value, layer: nn.Module, stored_as: str) -> ir.Value:
        """x: stored rows [n, C] to the log-probabilities of a layer's softmax [n, columns]."""
        product = self.arithmetic.product(name, x, layer, stored_as)
        return self.nodes.op("LogSoftmax", [self.arithmetic.logits(product)], axis=-1)

    def entries(self, logprobs: ir.Value, targets: ir.Value) -> ir.Value:
        """logprobs: [n, columns], targets: int64 [n], to the targets' entries [n]."""
        return self.nodes.reshape(self._entry_column(logprobs, targets), -1)

    def _entry_column(self, logprobs: ir.Value, targets: ir.Value) -> ir.Value:
        """As `_entries`, [n, 1]."""
        column = self.nodes.op("Unsqueeze", [targets, self.nodes.integers(1)])
        return self.nodes.op("GatherElements", [logprobs, column], axis=1)

    def _tails(self, x: ir.Value, head: ir.Value) -> list[ir.Value]:
        """The log-probabilities of each tail's tokens, [n, columns], of stored rows [n, C] and the
        head's, [n, columns]."""
        parts = []
        for index in range(len(self.config.tails)):
            first = self.config.cutoffs[0] + index
            entry = self.nodes.columns(head, first, first + 1)
            parts.append(self.nodes.op("Add", [entry, self.tail_logprobs(index, x)]))
        return parts

    def _every_token(self, x: ir.Value) -> ir.Value:
        """x: stored rows [n, C] to the log-probabilities of every token, [n, V]."""
        if not self.config.cutoffs:
            return self.full(x)
        head = self.head(x)
        common = self.nodes.columns(head, 0, self.config.cutoffs[0])
        return self.nodes.op("Concat", [common, *self._tails(x, head)], axis=1)

    def _alternatives(self, x: ir.Value, turn: ir.Value, size: ir.Value) -> list[ir.Value]:
        """The outputs of a turn of the loop over rows with alternatives (see `ALTERNATIVES`)."""
        first = self.nodes.op("Mul", [turn, size])
        bounds = [first, self.nodes.op("Add", [first, size])]
        rows, targets = (
            self.nodes.op("Slice", [self.nodes.inputs[name], *bounds])
            for name in (graph.ALTERNATIVE_ROWS, graph.ALTERNATIVE_TARGETS)
        )
        logprobs = self._every_token(self.nodes.op("Gather", [x, rows]))
        target = self._entry_column(logprobs, targets)
        likelier = self.nodes.op("Greater", [logprobs, target])
        likelier = self.nodes.op("Cast", [likelier], to=ir.DataType.FLOAT.value)
        # a count, which float32 holds exactly in any order
        likelier = self.nodes.op("ReduceSum", [likelier, self.nodes.integers(1)], keepdims=0)
        wanted = self.nodes.inputs[graph.ALTERNATIVE_COUNT]
        top, ids = self.nodes.ops("TopK", [logprobs, wanted], 2, axis=1)
        outputs = [self.nodes.reshape(target, -1), likelier, ids, top]
        for value, (kind, shape) in zip(outputs, ALTERNATIVES, strict=True):
            value.dtype, value.shape = kind, ir.Shape(shape)
        return outputs

    def _rows_paying_for_tails(self, head: ir.Value) -> ir.Value:
        """The rows of [M, columns] whose tails are wanted, int64 [m]: see `TailTerms`.

        The operators here may give other bits for other numbers of rows: which rows pay changes no
        result.
        """
        first, columns = self.config.cutoffs[0], self.config.head_columns
        axis = self.nodes.integers(1)
        ordinary = self.nodes.columns(head, graph.HELD_TOKENS, first)
        best = self.arithmetic.largest(ordinary)
        others = self.nodes.integers(*range(graph.HELD_TOKENS), *range(first, columns))
        others = self.nodes.op("Gather", [head, others], axis=1)
        likely = self.nodes.op("Exp", [self.nodes.op("Concat", [best, others], axis=1)])
        terms = self.nodes.op("Mul", [likely, self.nodes.inputs[graph.TAIL_WEIGHTS]])
        total = self.nodes.op("ReduceSum", [terms, axis], keepdims=0)
        paying = self.nodes.op("GreaterOrEqual", [total, self.nodes.inputs[graph.TAIL_FLOORS]])
        rows = self.nodes.reshape(self.nodes.op("NonZero", [paying]), -1)
        return self.arithmetic.padded_rows(rows)


def tail_inputs(config: LanguageModelConfig) -> dict[str, list[str | int]]:
    """Shapes of the inputs that say which targets are in the tails of an adaptive softmax."""
    names = (graph.tail_rows_name, graph.tail_targets_name, graph.tail_positions_name)
    return {name(tail): [f"tail_{tail}"] for tail in range(len(config.tails)) for name in names}
