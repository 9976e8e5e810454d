"""The LSTM as an ONNX model, op by op, so that ONNX Runtime runs both sides of a comparison.

Legend: N steps, B texts side by side, C a layer's channels. Rows are steps by texts, N * B.
"""

from __future__ import annotations

import copy
from typing import cast

import numpy as np
import torch
from onnxscript import ir
from torch import Tensor, nn

from model.architecture.lstm import LSTM
from model.core import graph
from model.core.config import LSTMConfig, ModelConfig
from model.core.graph import FlatBatch, Floats, Indices
from model.export.graph_writer import Writer

_GATES = (0, 3, 1, 2)
"""PyTorch's input, forget, cell, output gates in ONNX's order: input, output, forget, cell."""


def hidden_name(layer: int) -> str:
    """The input with a layer's hidden state before the first step: float32 [1, B, C]."""
    return f"hidden_{layer}"


def cell_name(layer: int) -> str:
    """The input with a layer's cell state before the first step: float32 [1, B, C]."""
    return f"cell_{layer}"


def new_name(state: str) -> str:
    """The output with the same state behind the last step."""
    return f"new_{state}"


class LSTMGraph(Writer):
    """Builds the ONNX model of an LSTM whose weights are rounded (see `rounded`).

    Inputs: tokens int64 [N, B], the states, and what `feeds` makes of the targets. Outputs:
    log-probabilities of the targets float32 [N, B], and the new states.
    """

    def __init__(self, model: LSTM) -> None:
        if model.config.ngrams or model.config.input_channels:
            raise ValueError("the graph of an LSTM has neither n-grams nor an input projection")
        super().__init__(model, model.config, _inputs(model.config))
        self.model, self.config = model, model.config

    def build(self) -> ir.Model:
        """The complete model."""
        embedding = self._weight("embedding", self.model.embedding.weight)
        x = self._op("Gather", [embedding, self.inputs[graph.TOKENS]])  # [N, B, E]
        states: list[ir.Value] = []
        for index, layer in enumerate(self.model.layers):
            x, *after = self._layer(index, cast(nn.LSTM, layer), x)
            states.extend(after)
        rows = self._reshape(x, -1, self.config.trunk_outputs)  # [N * B, C]
        rows = self._linear(self.model.head, "head", rows)
        if self.config.cutoffs:
            logprobs = self._adaptive(rows, rows)
        else:
            distribution = self._full(rows)
            logprobs = self._of_targets(distribution, self.inputs[graph.TARGETS])
        shape = self._op("Shape", [self.inputs[graph.TOKENS]])
        logprobs = self._op("Reshape", [logprobs, shape])
        logprobs.name, logprobs.dtype = graph.LOGPROBS, ir.DataType.FLOAT
        logprobs.shape = ir.Shape(["N", "B"])
        return self._finished([logprobs, *states], "lstm")

    def _layer(self, index: int, layer: nn.LSTM, x: ir.Value) -> tuple[ir.Value, ...]:
        """x: [N, B, C_in] to [N, B, C], the new hidden and the new cell state [1, B, C]."""
        weights = [
            self._weight(f"lstm_{index}_{name}", _reordered(cast(Tensor, weight))[None])
            for name, weight in (("in", layer.weight_ih_l0), ("back", layer.weight_hh_l0))
        ]  # [1, 4 C, C_in] and [1, 4 C, C]
        biases = [_reordered(cast(Tensor, b)) for b in (layer.bias_ih_l0, layer.bias_hh_l0)]
        bias = self._float(f"lstm_{index}_bias", torch.cat(biases)[None])  # [1, 8 C]
        states = [self.inputs[hidden_name(index)], self.inputs[cell_name(index)]]
        y, hidden, cell = self.tape.op_multi_out(
            "LSTM",
            [x, *weights, bias, None, *states],
            {"hidden_size": layer.hidden_size},
            num_outputs=3,
        )
        for new, old in ((hidden, states[0]), (cell, states[1])):
            assert old.name is not None
            new.name, new.shape, new.type = new_name(old.name), old.shape, old.type
        return self._op("Squeeze", [y, self._integers(1)]), hidden, cell


def rounded(model: LSTM) -> LSTM:
    """A copy with its weights rounded to float16, as the graph stores them. Biases keep float32."""
    plain = copy.deepcopy(model).eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.half().float())
    return plain


def feeds(config: LSTMConfig, tokens: Indices, targets: Indices) -> dict[str, Indices | Floats]:
    """The inputs besides the states. tokens, targets: int64 [N, B]."""
    none = np.zeros(0, np.int64)
    batch = FlatBatch(
        tokens=tokens,
        addresses=(),
        score_rows=np.arange(targets.size),
        targets=targets.reshape(-1),
        next_rows=none,
    )
    arrays = batch.feeds(cast(ModelConfig, config))  # of a configuration it reads the softmax alone
    return {name: array for name, array in arrays.items() if name in _indices(config)}


def empty_states(config: LSTMConfig, texts: int) -> dict[str, Floats]:
    """What is before a text: zeros, float32 [1, texts, C] a state, by input name."""
    return {
        name: np.zeros((1, texts, width), np.float32)
        for index, width in enumerate(config.lstm)
        for name in (hidden_name(index), cell_name(index))
    }


def _reordered(weight: Tensor) -> Tensor:
    """[4 C, ...] with the gates in ONNX's order."""
    gates = weight.detach().chunk(4)
    return torch.cat([gates[index] for index in _GATES])


def _indices(config: LSTMConfig) -> dict[str, list[str]]:
    """Integer inputs and their shapes."""
    shapes = {graph.TOKENS: ["N", "B"], graph.TARGETS: ["rows"]}
    for tail in range(len(config.tails)):
        for named in (graph.tail_rows_name, graph.tail_targets_name, graph.tail_places_name):
            shapes[named(tail)] = [f"tail_{tail}"]
    return shapes


def _inputs(config: LSTMConfig) -> dict[str, ir.Value]:
    values = {
        name: ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.INT64))
        for name, shape in _indices(config).items()
    }
    for index, width in enumerate(config.lstm):
        for name in (hidden_name(index), cell_name(index)):
            shape = ir.Shape([1, "B", width])
            values[name] = ir.Value(name=name, shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
    return values
