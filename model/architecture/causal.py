"""What every language model here does with its hidden rows, whatever computes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from torch import Tensor, arange, from_numpy, nn, where
from torch.nn.functional import dropout

from model.architecture.hashed_ngrams import NgramEmbedding, recent_tokens
from model.architecture.softmax import AdaptiveSoftmax, FullSoftmax, build
from model.core.config import LanguageModelConfig
from model.core.gates import EMBEDDING_STD


class CausalModel(nn.Module, ABC):
    """An embedding, a trunk that looks back only, and a softmax."""

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
        """A text as a batch of one where the weights are: int64 [N] to int64 [1, N]."""
        return from_numpy(ids)[None].to(self.embedding.weight.device)

    @abstractmethod
    def hidden(self, tokens: Tensor) -> Tensor:
        """tokens: int64 [B, N] to what enters the softmax, float [B, N, C]."""

    def embedded(self, tokens: Tensor, places: Tensor | None = None) -> Tensor:
        """tokens: int64 [B, N] to what enters the trunk, float [B, N, C].

        places: int64 [B, N] or None, see `places`.
        """
        x = dropout(self.embedding(tokens), self.dropout, self.training)  # [B, N, E]
        if self.input is not None:
            x = self.input(x)
        if self.ngrams:
            recent = recent_tokens(tokens, self.order, places)
            for ngram in self.ngrams:
                x = x + ngram(recent)
        return x

    def places(self, tokens: Tensor) -> Tensor | None:
        """How many tokens of the row and of its text lie before each: int64 [B, N].

        A start symbol begins a text. None when there is none within a row.
        """
        starts = tokens == self.start_id
        if not bool(starts[:, 1:].any()):
            return None
        position = arange(tokens.shape[1], device=tokens.device)
        return position - where(starts, position, 0).cummax(1).values

    @abstractmethod
    def pieces(self, ids: npt.NDArray[np.int64], size: int) -> Iterator[Tensor]:
        """A text's hidden rows piece by piece, as of the whole: ids int64 [N], float [n, C] each.

        Pieces have `size` rows, the last what is left.
        """

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """tokens: int64 [B, N] to log-probabilities, float [B, N, V], of the token behind each.

        With targets, int64 [B, N], the sum of their negative log-probabilities instead, nats:
        float32 []. A target below 0 does not count.
        """
        hidden = self.hidden(tokens)
        if targets is None:
            return self.output.logprobs(hidden)
        return self.output.total(hidden.flatten(0, 1), targets.flatten())


def projection(inputs: int, outputs: int | None) -> nn.Linear | None:
    """A linear layer of variance-keeping weights; None for no layer."""
    if outputs is None:
        return None
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=inputs**-0.5)
    nn.init.zeros_(layer.bias)
    return layer
