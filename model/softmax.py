"""The output layer: a full softmax, or an adaptive one whose rare words cost less."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from model import cross_entropy
from model.config import LanguageModelConfig


class FullSoftmax(nn.Linear):
    """One matrix over the vocabulary. weight: [V, C], bias: [V]."""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__(config.head_width, config.vocabulary)
        nn.init.normal_(self.weight, std=config.head_width**-0.5)
        nn.init.zeros_(self.bias)

    def logprobs(self, x: Tensor) -> Tensor:
        """x: [..., C] to log-probabilities [..., V]."""
        return log_softmax(self(x).float(), -1)

    def losses(self, x: Tensor, targets: Tensor) -> Tensor:
        """Negative log-probabilities of targets. x: [n, C], targets: int64 [n], to [n]."""
        return cross_entropy.losses(self(x), targets)


class AdaptiveSoftmax(nn.Module):
    """Clusters of tokens by frequency (Grave et al. 2016, section 4), without biases.

    The head has the commonest tokens and one entry for each tail; a tail is two matrices with a
    narrow middle. ln p(w) = ln p(tail) + ln p(w | tail) for a token of a tail.
    """

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.shortlist = config.cutoffs[0]
        self.bounds = config.tails
        self.head = nn.Linear(config.head_width, config.head_columns, bias=False)
        self.tails = nn.ModuleList(
            nn.Sequential(
                nn.Linear(config.head_width, tail.inner, bias=False),
                nn.Linear(tail.inner, tail.size, bias=False),
            )
            for tail in self.bounds
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)

    def logprobs(self, x: Tensor) -> Tensor:
        """x: [..., C] to log-probabilities [..., V]; pays for every tail."""
        head = log_softmax(self.head(x).float(), -1)
        parts = [head[..., : self.shortlist]]
        for index, tail in enumerate(self.tails):
            entry = head[..., self.shortlist + index, None]
            parts.append(entry + log_softmax(tail(x).float(), -1))
        return torch.cat(parts, -1)

    def losses(self, x: Tensor, targets: Tensor) -> Tensor:
        """Negative log-probabilities of targets. x: [n, C], targets: int64 [n], to [n].

        A row pays for the tail of its target alone.
        """
        entries = targets
        inside = []
        for index, bound in enumerate(self.bounds):
            mask = (targets >= bound.low) & (targets < bound.high)
            inside.append(mask.nonzero().squeeze(1))
            entries = torch.where(mask, self.shortlist + index, entries)
        losses = cross_entropy.losses(self.head(x), entries)
        for rows, bound, tail in zip(inside, self.bounds, self.tails, strict=True):
            # also for no row: every weight has a gradient then, which several processes rely on
            extra = cross_entropy.losses(tail(x[rows]), targets[rows] - bound.low)
            losses = losses.index_add(0, rows, extra)
        return losses


def build(config: LanguageModelConfig) -> FullSoftmax | AdaptiveSoftmax:
    """The output layer that a configuration states."""
    return AdaptiveSoftmax(config) if config.cutoffs else FullSoftmax(config)
