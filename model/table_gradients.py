"""Gradients of tables that are only looked up, added up in one place for a whole update."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TableGradients:
    """Adds the gradients of looked-up rows to a table of zeros that is kept between updates.

    PyTorch makes such a table, of 16 MiB for 4 million weights, in each pass anew. What
    `nn.Embedding(sparse=True)` hands over instead are the rows alone; clipping and AdamW's moments
    want the whole, so that `gather` puts them together behind the last pass.
    """

    def __init__(self, model: nn.Module) -> None:
        """Of every embedding whose weights nothing else uses."""
        users: dict[int, int] = {}
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                users[id(parameter)] = users.get(id(parameter), 0) + 1
        self._sums: dict[Tensor, Tensor] = {}
        for module in model.modules():
            if isinstance(module, nn.Embedding) and users[id(module.weight)] == 1:
                module.sparse = True
                self._sums[module.weight] = torch.zeros_like(module.weight)

    @torch.no_grad()
    def gather(self) -> None:
        """Makes each table's gradient, of rows so far, a dense one: float32 [rows, channels]."""
        for weight, total in self._sums.items():
            rows = weight.grad  # not coalesced: a row for every token that was read
            if rows is not None and rows.is_sparse:
                total.zero_().index_add_(0, rows._indices()[0], rows._values())
                weight.grad = total
