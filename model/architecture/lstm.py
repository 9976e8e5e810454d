"""An LSTM language model on the same embedding and softmax, the baseline of the convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from model.architecture.causal import CausalModel
from model.core.config import LSTMConfig

State = tuple[Tensor, Tensor]


class LSTM(CausalModel):
    """Layers of PyTorch's LSTM (Hochreiter & Schmidhuber 1997, with forget gates)."""

    def __init__(self, config: LSTMConfig, start_id: int) -> None:
        super().__init__(config, start_id)
        self.config = config
        widths = pairwise((config.trunk_inputs, *config.lstm))
        self.layers = nn.ModuleList(_layer(m, n) for m, n in widths)

    def hidden(self, tokens: Tensor) -> Tensor:
        """tokens: int64 [B, N] to [B, N, C]; the state is zero before each row.

        A start symbol inside a row does not reset it, as is usual in training; `pieces` resets it
        at the beginning of every text.
        """
        x = self.embedded(tokens, self.positions(tokens))
        return self._run(x, self._no_states())[0]

    def pieces(self, ids: npt.NDArray[np.int64], size: int) -> Iterator[Tensor]:
        """As `CausalModel.pieces`: the state is carried on, and zero at a start symbol."""
        states = self._no_states()
        bounds = {0, len(ids), *range(0, len(ids), size), *np.flatnonzero(ids == self.start_id)}
        parts, text = [], 0
        for first, last in pairwise(sorted(bounds)):
            if ids[first] == self.start_id:
                states, text = self._no_states(), first
            seen = max(text, first - self.order + 1)  # earlier tokens that n-grams reach
            x = self.embedded(self.on_device(ids[seen:last]))[:, first - seen :]
            part, states = self._run(x, states)
            parts.append(part[0])
            if last % size == 0 or last == len(ids):
                yield torch.cat(parts)
                parts = []

    def _no_states(self) -> list[State | None]:
        return [None] * len(self.layers)

    def _run(self, x: Tensor, states: list[State | None]) -> tuple[Tensor, list[State | None]]:
        """x: [B, N, C_in] to [B, N, C]; states before it to states after it."""
        drop = self.dropout if self.training else 0.0
        after: list[State | None] = []
        for layer, state in zip(self.layers, states, strict=True):
            x, new = layer(dropout(x, drop, drop > 0), state)
            after.append(new)
        x = dropout(x, drop, drop > 0)
        return (x if self.head is None else self.head(x)), after


def _layer(inputs: int, outputs: int) -> nn.LSTM:
    layer = nn.LSTM(inputs, outputs, batch_first=True)
    with torch.no_grad():  # it remembers at first (Jozefowicz et al. 2015, section 3.2)
        biases = cast(Tensor, layer.bias_ih_l0)  # input, forget, cell and output gate
        biases[outputs : 2 * outputs] = 1.0
    return layer
