"""Base class of the language models: embedding, trunk, softmax."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from torch import Tensor, arange, from_numpy, nn, stack, tensor, where
from torch.nn.functional import dropout

from model.architecture.softmax import AdaptiveSoftmax, FullSoftmax, build
from model.core.config import HashedNgrams, LanguageModelConfig
from model.core.gates import EMBEDDING_STD

MULTIPLIERS = (36313, 27191, 51749, 94463, 71993, 60077, 83597, 45007)
"""Odd factors of the token itself, of the one before it, and so on, in the hash."""


class CausalModel(nn.Module, ABC):
    """An embedding, a trunk that reads only earlier tokens, and a softmax."""

    output: FullSoftmax | AdaptiveSoftmax

    def __init__(self, config: LanguageModelConfig, start_id: int) -> None:
        super().__init__()
        self.start_id = start_id
        self.dropout = 0.0
        self.embedding = nn.Embedding(config.vocabulary, config.embedding)
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
        self.input = projection(config.embedding, config.input_channels)
        self.ngrams = nn.ModuleList(
            NgramEmbedding(ngram, config.trunk_inputs) for ngram in config.ngrams
        )
        self.order = config.ngram_order
        self.head = projection(config.trunk_outputs, config.head_channels)
        self.output = build(config)
        if config.tied:
            assert isinstance(self.output, FullSoftmax)
            self.output.weight = self.embedding.weight

    def on_device(self, ids: npt.NDArray[np.int64]) -> Tensor:
        """A text as a batch of one on the device of the weights: int64 [N] to int64 [1, N]."""
        return from_numpy(ids)[None].to(self.embedding.weight.device)

    @abstractmethod
    def hidden(self, tokens: Tensor) -> Tensor:
        """tokens: int64 [B, N] to the input of the softmax, float [B, N, C]."""

    def embedded(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """tokens: int64 [B, N] to the input of the trunk, float [B, N, C].

        positions: int64 [B, N] or None, see `positions`.
        """
        x = dropout(self.embedding(tokens), self.dropout, self.training)  # [B, N, E]
        if self.input is not None:
            x = self.input(x)
        if self.ngrams:
            recent = _recent_tokens(tokens, self.order, positions)
            for ngram in self.ngrams:
                x = x + ngram(recent)
        return x

    def positions(self, tokens: Tensor) -> Tensor | None:
        """How many tokens of its row and text are before each token: int64 [B, N].

        A start symbol begins a text. None if every row has one text.
        """
        starts = tokens == self.start_id
        if not bool(starts[:, 1:].any()):
            return None
        position = arange(tokens.shape[1], device=tokens.device)
        return position - where(starts, position, 0).cummax(1).values

    @abstractmethod
    def pieces(self, ids: npt.NDArray[np.int64], size: int) -> Iterator[Tensor]:
        """The hidden rows of a text, as `hidden` computes them, in pieces: float [n, C] each.

        ids: int64 [N]. Pieces have `size` rows, the last one the rest.
        """

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """tokens: int64 [B, N] to log-probabilities, float [B, N, V], of the token after each.

        With targets, int64 [B, N], to the sum of their negative log-probabilities, nats: float32
        []. A target below 0 does not count.
        """
        hidden = self.hidden(tokens)
        if targets is None:
            return self.output.logprobs(hidden)
        return self.output.total(hidden.flatten(0, 1), targets.flatten())


def projection(inputs: int, outputs: int | None) -> nn.Linear | None:
    """A linear layer whose weights keep the variance; None without outputs."""
    if outputs is None:
        return None
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=inputs**-0.5)
    nn.init.zeros_(layer.bias)
    return layer


class NgramEmbedding(nn.Module):
    """Vectors of hashed n-grams (see `HashedNgrams`), projected to the trunk's width."""

    def __init__(self, config: HashedNgrams, outputs: int) -> None:
        super().__init__()
        self.config = config
        self.table = nn.Embedding(config.rows, config.channels)
        nn.init.zeros_(self.table.weight)  # an unseen n-gram adds nothing
        self.mix = nn.Linear(config.channels, outputs, bias=False)
        nn.init.normal_(self.mix.weight, std=config.channels**-0.5)

    def forward(self, recent: Tensor) -> Tensor:
        """recent: int64 [B, N, n], the token first, then those before it, to [B, N, C]."""
        factors = tensor(MULTIPLIERS[: self.config.order], device=recent.device)
        rows = (recent[..., : self.config.order] * factors).sum(-1) % self.config.rows
        vectors: Tensor = self.mix(self.table(rows))
        return vectors


def _recent_tokens(tokens: Tensor, order: int, positions: Tensor | None) -> Tensor:
    """Each token and the order - 1 tokens before it, 0 before the beginning of the text.

    tokens: int64 [B, N]; positions: int64 [B, N] or None, see `CausalModel.positions`.
    Returns int64 [B, N, order].
    """
    length = tokens.shape[1]
    padded = nn.functional.pad(tokens, (order - 1, 0))
    recent = stack([padded[:, order - 1 - j :][:, :length] for j in range(order)], -1)
    if positions is None:
        return recent
    return recent * (positions[..., None] >= arange(order, device=tokens.device))
