"""Hashed n-gram embeddings (see `model.core.config.HashedNgrams`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.core.config import HashedNgrams

MULTIPLIERS = (36313, 27191, 51749, 94463, 71993, 60077, 83597, 45007)
"""Odd factors of the token itself, of the one before it, and so on, in the hash."""


class NgramEmbedding(nn.Module):
    """Vectors of hashed n-grams, projected to the trunk's width."""

    def __init__(self, config: HashedNgrams, outputs: int) -> None:
        super().__init__()
        self.config = config
        self.table = nn.Embedding(config.rows, config.channels)
        nn.init.zeros_(self.table.weight)  # an unseen n-gram adds nothing
        self.mix = nn.Linear(config.channels, outputs, bias=False)
        nn.init.normal_(self.mix.weight, std=config.channels**-0.5)

    def forward(self, recent: Tensor) -> Tensor:
        """recent: int64 [B, N, n], the token first, then those before it, to [B, N, C]."""
        factors = torch.tensor(MULTIPLIERS[: self.config.order], device=recent.device)
        rows = (recent[..., : self.config.order] * factors).sum(-1) % self.config.rows
        vectors: Tensor = self.mix(self.table(rows))
        return vectors


def recent_tokens(tokens: Tensor, order: int, positions: Tensor | None) -> Tensor:
    """Each token and the order - 1 tokens before it, 0 before the beginning of the text.

    tokens: int64 [B, N]; positions: int64 [B, N] or None, see `CausalModel.positions`.
    Returns int64 [B, N, order].
    """
    length = tokens.shape[1]
    padded = nn.functional.pad(tokens, (order - 1, 0))
    recent = torch.stack([padded[:, order - 1 - j :][:, :length] for j in range(order)], -1)
    if positions is None:
        return recent
    return recent * (positions[..., None] >= torch.arange(order, device=tokens.device))
