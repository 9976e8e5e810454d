"""The LSTM as an ONNX model, op by op, so that ONNX Runtime runs both models of a comparison.

Legend: N steps, B texts in parallel, C a layer's channels. Rows are steps by texts, N * B.
"""

from __future__ import annotations

import copy
from typing import cast

import numpy as np
import torch
from onnxscript import ir
from torch import Tensor, nn

from model.architecture.lstm import LSTM
from model.core import graph, weight_names
from model.core.config import LSTMConfig, ModelConfig
from model.core.flat_batch import NO_ROWS, FlatBatch
from model.core.graph import Floats, Indices
from model.export.arithmetic import Arithmetic
from model.export.nodes import Nodes, described, value
from model.export.softmax_graph import SoftmaxGraph, tail_inputs

_GATE_ORDER = (0, 3, 1, 2)
"""PyTorch's input, forget, cell, output gates in ONNX's order: input, output, forget, cell."""
hidden_name = "hidden_{}".format
"""The input with a layer's hidden state before the first step: float32 [1, B, C]."""
cell_name = "cell_{}".format
"""The input with a layer's cell state before the first step: float32 [1, B, C]."""


class LSTMGraph:
    """Builds the ONNX model of an LSTM whose weights are rounded (see `round_weights`).

    Inputs: tokens int64 [N, B], the states, and the targets as `feeds` gives them. Outputs:
    log-probabilities of the targets float32 [N, B], and the new states (`graph.new_pool_name`).
    """

    def __init__(self, model: LSTM) -> None:
        if model.config.ngrams or model.config.input_channels:
            raise ValueError("the graph of an LSTM has neither n-grams nor an input projection")
        self.model, self.config = model, model.config
        self.nodes = Nodes(_inputs(model.config))
        self.arithmetic = Arithmetic(self.nodes)
        self.weights = self.arithmetic.weights

    def build(self) -> ir.Model:
        """The complete model."""
        tokens = self.nodes.inputs[graph.TOKENS]
        embedding = self.weights.matrix(weight_names.EMBEDDING, self.model.embedding.weight)
        x = self.nodes.op("Gather", [embedding, tokens])  # [N, B, E]
        states: list[ir.Value] = []
        for index, layer in enumerate(self.model.layers):
            x, *after = self._layer(index, cast(nn.LSTM, layer), x)
            states.extend(after)
        rows = self.nodes.reshape(x, -1, self.config.trunk_outputs)  # [N * B, C]
        rows = self.arithmetic.linear(weight_names.HEAD, self.model.head, rows)
        softmax = SoftmaxGraph(self.model.output, self.config, self.arithmetic)
        logprobs = softmax.target_logprobs(rows, rows)
        logprobs = self.nodes.op("Reshape", [logprobs, self.nodes.op("Shape", [tokens])])
        described(logprobs, graph.LOGPROBS, ir.DataType.FLOAT, ["N", "B"])
        return self.nodes.model([logprobs, *states], "lstm")

    def _layer(self, index: int, layer: nn.LSTM, x: ir.Value) -> tuple[ir.Value, ...]:
        """x: [N, B, C_in] to [N, B, C], the new hidden and the new cell state [1, B, C]."""
        weights = [
            self.weights.matrix(f"lstm_{index}_{part}", _reordered(cast(Tensor, weight))[None])
            for part, weight in (("in", layer.weight_ih_l0), ("back", layer.weight_hh_l0))
        ]  # [1, 4 C, C_in] and [1, 4 C, C]
        biases = [_reordered(cast(Tensor, b)) for b in (layer.bias_ih_l0, layer.bias_hh_l0)]
        bias = self.weights.vector(f"lstm_{index}_bias", torch.cat(biases)[None])
        states = [self.nodes.inputs[name(index)] for name in (hidden_name, cell_name)]
        inputs = [x, *weights, bias, None, *states]  # bias: [1, 8 C]
        y, *after = self.nodes.ops("LSTM", inputs, 3, hidden_size=layer.hidden_size)
        for new, old in zip(after, states, strict=True):
            assert old.name is not None
            new.name, new.shape, new.type = graph.new_pool_name(old.name), old.shape, old.type
        return self.nodes.op("Squeeze", [y, self.nodes.integers(1)]), *after


def round_weights(model: LSTM) -> LSTM:
    """A copy with the weights rounded to float16, as the graph stores them; biases are float32."""
    plain = copy.deepcopy(model).eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.half().float())
    return plain


def feeds(config: LSTMConfig, tokens: Indices, targets: Indices) -> dict[str, Indices | Floats]:
    """The inputs except the states. tokens, targets: int64 [N, B]."""
    batch = FlatBatch(
        tokens=tokens,
        addresses=(),
        score_rows=np.arange(targets.size),
        targets=targets.reshape(-1),
        next_rows=NO_ROWS,
    )
    arrays = batch.feeds(cast(ModelConfig, config))  # it reads only the softmax of a configuration
    return {name: array for name, array in arrays.items() if name in _indices(config)}


def empty_states(config: LSTMConfig, texts: int) -> dict[str, Floats]:
    """The states before a text: zeros, float32 [1, texts, C] each, by input name."""
    return {
        name: np.zeros((1, texts, width), np.float32)
        for index, width in enumerate(config.lstm)
        for name in (hidden_name(index), cell_name(index))
    }


def _reordered(weight: Tensor) -> Tensor:
    """[4 C, ...] with the gates in ONNX's order."""
    gates = weight.detach().chunk(4)
    return torch.cat([gates[index] for index in _GATE_ORDER])


def _indices(config: LSTMConfig) -> dict[str, list[str | int]]:
    """Shapes of the integer inputs, by name."""
    return {graph.TOKENS: ["N", "B"], graph.TARGETS: ["rows"], **tail_inputs(config)}


def _inputs(config: LSTMConfig) -> dict[str, ir.Value]:
    shapes = _indices(config).items()
    values = {name: value(name, ir.DataType.INT64, shape) for name, shape in shapes}
    for index, width in enumerate(config.lstm):
        for name in (hidden_name(index), cell_name(index)):
            values[name] = value(name, ir.DataType.FLOAT, [1, "B", width])
    return values
