"""The output layer: a full softmax, or an adaptive one whose rare words cost less."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, pad

from model.architecture import cross_entropy
from model.core.config import LanguageModelConfig


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
        """Negative log-probabilities of targets, without gradients. x: [n, C], targets: int64 [n],
        to [n]."""
        return cross_entropy.losses(x, self, targets)

    def total(self, x: Tensor, targets: Tensor) -> Tensor:
        """The sum of `losses`, with gradients. A target below 0 does not count."""
        return cross_entropy.total(x, self, targets)


class AdaptiveSoftmax(nn.Module):
    """Clusters of tokens by frequency (Grave et al. 2016, section 4), without biases.

    The head has the most frequent tokens and an entry for each tail. A tail is two matrices with a
    narrow layer between them. ln p(w) = ln p(tail) + ln p(w | tail) for a token of a tail.
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
        """x: [..., C] to log-probabilities [..., V]; computes every tail."""
        head = log_softmax(self.head(x).float(), -1)
        parts = [head[..., : self.shortlist]]
        for index, tail in enumerate(self.tails):
            entry = head[..., self.shortlist + index, None]
            parts.append(entry + log_softmax(tail(x).float(), -1))
        return torch.cat(parts, -1)

    @torch.no_grad()
    def losses(self, x: Tensor, targets: Tensor) -> Tensor:
        """Negative log-probabilities of targets, without gradients. x: [n, C], targets: int64 [n],
        to [n]. Of a row only the tail of its target is computed."""
        losses = cross_entropy.losses(x, self.head, self._entries(targets))
        for rows, inner, wide, within in self._in_tails(x, targets):
            losses.index_add_(0, rows, cross_entropy.losses(inner, wide, within))
        return losses

    def total(self, x: Tensor, targets: Tensor) -> Tensor:
        """The sum of `losses`, with gradients. A target below 0 does not count."""
        total = cross_entropy.total(x, self.head, self._entries(targets))
        for _, inner, wide, within in self._in_tails(x, targets, multiple=cross_entropy.ROWS):
            # also without rows: so every weight has a gradient, which several processes rely on
            total = total + cross_entropy.total(inner, wide, within)
        return total

    def _entries(self, targets: Tensor) -> Tensor:
        """The entries of the head for targets: of the target itself, or of its tail."""
        entries = targets
        for index, bound in enumerate(self.bounds):
            held = (targets >= bound.low) & (targets < bound.high)
            entries = torch.where(held, self.shortlist + index, entries)
        return entries

    def _in_tails(
        self, x: Tensor, targets: Tensor, multiple: int = 1
    ) -> Iterator[tuple[Tensor, Tensor, nn.Linear, Tensor]]:
        """For each tail the rows whose targets it holds, [m], the input of its second matrix, [m,
        inner], that matrix, and the targets as its columns, [m].

        Rows of zeros with targets of -1 are added up to the next multiple of `multiple`."""
        for bound, tail in zip(self.bounds, self.tails, strict=True):
            held = (targets >= bound.low) & (targets < bound.high)
            rows = held.nonzero().squeeze(1)
            narrow, wide = (cast(nn.Linear, layer) for layer in cast(nn.Sequential, tail))
            # index_select, since its gradient takes a seventh of an index's
            inputs = x.index_select(0, rows)
            within = targets.index_select(0, rows) - bound.low
            if more := -len(rows) % multiple:
                inputs, within = (
                    pad(inputs, (0, 0, 0, more)),
                    pad(within, (0, more), value=-1),
                )
            yield rows, narrow(inputs), wide, within


def build(config: LanguageModelConfig) -> FullSoftmax | AdaptiveSoftmax:
    """The output layer of a configuration."""
    return AdaptiveSoftmax(config) if config.cutoffs else FullSoftmax(config)
