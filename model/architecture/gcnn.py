"""The gated convolutional language model in PyTorch, on padded [B, N] tokens.

Slow and plain where the flat graph is fast: the graph is checked against it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear
from torch.nn.utils import parametrizations

from model.architecture import rounding
from model.architecture.causal import CausalModel, NgramEmbedding, projection
from model.architecture.clip import clamp
from model.architecture.frames import side_by_side
from model.architecture.gates import gated
from model.architecture.lstm import LSTM
from model.core.config import Layer, LSTMConfig, ModelConfig
from model.core.gates import GATES

_NEAR_ZERO = 1e-4
"""Standard deviation of weights that add almost nothing at first, and still differ."""


class CausalConv(nn.Module):
    """A gated causal convolution: a matrix product of k frames, then a gate (eq. 1).

    weight: float32 [outputs (twice for gates of two halves), k * inputs], newest frame first.
    """

    def __init__(self, layer: Layer, config: ModelConfig) -> None:
        super().__init__()
        columns, rows = layer.outputs * config.conv_width, layer.kernel * layer.inputs
        self.layer = layer
        self.gate = GATES[config.gate]
        self.weight = nn.Parameter(torch.empty(columns, rows))
        self.bias = nn.Parameter(torch.zeros(columns))
        nn.init.normal_(self.weight, std=(self.gate.gain / rows) ** 0.5)

    def forward(self, x: Tensor, positions: Tensor | None) -> Tensor:
        """x: [B, N, inputs], positions: int64 [B, N] or None (see `CausalModel.positions`), to
        [B, N, outputs]."""
        sums = linear(side_by_side(x, self.layer, positions), self.weight, self.bias)
        return gated(sums, self.gate)


class ConvBlock(nn.Module):
    """Layers, and with a scale the block's input added to their output (Dauphin 2017, section 2).

    projection: of the input, if the channels differ. scale: factor of the sum; None for no sum.
    """

    def __init__(
        self, layers: list[CausalConv], projection: nn.Linear | None, scale: float | None
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.projection = projection
        self.scale = scale

    def forward(self, x: Tensor, positions: Tensor | None, drop: float) -> Tensor:
        """x: [B, N, C_in] to [B, N, C_out]."""
        residual = x if self.projection is None else self.projection(x)
        for layer in self.layers:
            x = layer(dropout(x, drop, drop > 0), positions)
        if self.scale is None:
            return x
        summed = x + residual
        return summed if self.scale == 1.0 else summed * self.scale  # a pass over memory


class GCNN(CausalModel):
    """The gated convolutional language model of a configuration."""

    def __init__(self, config: ModelConfig, start_id: int) -> None:
        super().__init__(config, start_id)
        self.config = config
        self.blocks = nn.ModuleList()
        for residual, layers in config.unrolled():
            convs = [CausalConv(layer, config) for layer in layers]
            width = None if layers[0].inputs == layers[-1].outputs else layers[-1].outputs
            shortcut = projection(layers[0].inputs, width)
            block = (shortcut, config.residual_scale) if residual else (None, None)
            self.blocks.append(ConvBlock(convs, *block))
        if config.weight_norm:
            for module in self._normalised():
                parametrizations.weight_norm(module, "weight", dim=0)

    @torch.no_grad()
    def begin_as_identity(self) -> None:
        """Redraws the last layers of residual blocks near zero, so that each block starts as almost
        the identity.

        Every block then gets its gradient undisturbed by the others (Zhang et al. 2019, section
        3.2). Raises ValueError with weight normalisation, which sets the size of weights, with a
        factor on residual sums, which would shrink the input, and without residual blocks.
        """
        blocks = cast(list[ConvBlock], self.blocks)
        residual = [block for block in blocks if block.scale is not None]
        if self.config.weight_norm:
            raise ValueError("identity_blocks needs weight_norm = false")
        if self.config.residual_scale != 1.0:
            raise ValueError("identity_blocks needs residual_scale = 1.0")
        if not residual:
            raise ValueError("identity_blocks needs residual blocks")
        for block in residual:
            nn.init.normal_(cast(CausalConv, block.layers[-1]).weight, std=_NEAR_ZERO)

    def _normalised(self) -> list[nn.Module]:
        blocks = cast(list[ConvBlock], self.blocks)
        projections = [self.input, self.head, *(block.projection for block in blocks)]
        linears = [module for module in projections if module is not None]
        return [*linears, *(m for m in self.modules() if isinstance(m, CausalConv))]

    def hidden(self, tokens: Tensor) -> Tensor:
        """tokens: int64 [B, N] to what enters the softmax, float [B, N, C].

        A row may hold several texts. At every layer, the frames before a start symbol are zeros for
        the tokens after it, as before the first token.
        """
        positions = self.positions(tokens)
        x = self.embedded(tokens, positions)
        for block in self.blocks:
            if self.config.clip is not None:
                x = clamp(x, self.config.clip)
            x = block(x, positions, self.dropout if self.training else 0.0)
        return x if self.head is None else cast(Tensor, self.head(x))

    def pieces(self, ids: npt.NDArray[np.int64], size: int) -> Iterator[Tensor]:
        """As `CausalModel.pieces`: each piece is computed after a halo of R - 1 tokens."""
        halo = self.config.receptive_field - 1
        for begin in range(0, len(ids), size):
            first = max(0, begin - halo)
            inputs = self.on_device(ids[first : begin + size])
            yield self.hidden(inputs)[0, begin - first :]

    def stored(self, grid: float | None = None) -> GCNN:
        """A float32 copy with the weights that a bundle stores, without weight normalisation.

        Tables that are only looked up are rounded to 8 bits (`model.architecture.rounding`), other
        weights to float16; biases stay as they are. With a grid, the weights of `gridded` are put
        on a grid of that spacing instead (`rounding.on_grid`). Raises ValueError if a weight is not
        finite then.
        """
        model = self.folded()
        matrix = model.embedding if self.config.tied else None
        gridded = set()
        with torch.no_grad():
            if grid is not None:
                for weight in model.gridded():
                    weight.copy_(rounding.on_grid(weight, grid))
                    gridded.add(id(weight))
            for module in model.modules():
                for name, parameter in module.named_parameters(recurse=False):
                    table = isinstance(module, nn.Embedding) and module is not matrix
                    if table and id(parameter) not in gridded:
                        parameter.copy_(rounding.round_to_bytes(parameter))
                    elif name != "bias" and id(parameter) not in gridded:
                        parameter.copy_(parameter.half().float())
                    if not parameter.isfinite().all():
                        raise ValueError("a weight is too large for float16, or not a number")
        return model

    def gridded(self) -> list[nn.Parameter]:
        """The weights that can be put on a grid: all except biases and the n-grams' tables.

        Raises ValueError with weight normalisation, where weights are not parameters.
        """
        if self.config.weight_norm:
            raise ValueError("a grid needs weight_norm = false")
        tables = {id(cast(NgramEmbedding, ngram).table.weight) for ngram in self.ngrams}
        named = self.named_parameters()
        return [p for name, p in named if not name.endswith("bias") and id(p) not in tables]

    def folded(self) -> GCNN:
        """A float32 copy without weight normalisation."""
        plain = self.config.model_copy(update={"weight_norm": False})
        model = GCNN(plain, self.start_id).eval()
        modules = dict(self.named_modules())
        with torch.no_grad():
            for path, module in model.named_modules():
                for name, parameter in module.named_parameters(recurse=False):
                    parameter.copy_(getattr(modules[path], name).float())
        return model


def build(config: ModelConfig | LSTMConfig, start_id: int) -> GCNN | LSTM:
    """The model of any configuration, with fresh weights; `start_id` begins every text."""
    return LSTM(config, start_id) if isinstance(config, LSTMConfig) else GCNN(config, start_id)
