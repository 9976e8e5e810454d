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
        """Their sum, with gradients. A target below 0 does not count."""
        return cross_entropy.total(x, self, targets)


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

    @torch.no_grad()
    def losses(self, x: Tensor, targets: Tensor) -> Tensor:
        """Negative log-probabilities of targets, without gradients. x: [n, C], targets: int64 [n],
        to [n]. A row pays for the tail of its target alone."""
        losses = cross_entropy.losses(x, self.head, self._entries(targets))
        for rows, inner, wide, within in self._inside(x, targets):
            losses.index_add_(0, rows, cross_entropy.losses(inner, wide, within))
        return losses

    def total(self, x: Tensor, targets: Tensor) -> Tensor:
        """Their sum, with gradients. A target below 0 does not count."""
        total = cross_entropy.total(x, self.head, self._entries(targets))
        for _, inner, wide, within in self._inside(x, targets, multiple=cross_entropy.ROWS):
            # also of no row: every weight has a gradient then, which several processes rely on
            total = total + cross_entropy.total(inner, wide, within)
        return total

    def _entries(self, targets: Tensor) -> Tensor:
        """The head's entries of targets: their own, or that of their tail."""
        entries = targets
        for index, bound in enumerate(self.bounds):
            held = (targets >= bound.low) & (targets < bound.high)
            entries = torch.where(held, self.shortlist + index, entries)
        return entries

    def _inside(
        self, x: Tensor, targets: Tensor, multiple: int = 1
    ) -> Iterator[tuple[Tensor, Tensor, nn.Linear, Tensor]]:
        """Of each tail the rows whose target it holds, [m], what its wide layer reads of them,
        [m, inner], that layer, and the targets as its columns, [m].

        Up to the next multiple of some number of rows, zeros with targets of -1 are added."""
        for bound, tail in zip(self.bounds, self.tails, strict=True):
            held = (targets >= bound.low) & (targets < bound.high)
            rows = held.nonzero().squeeze(1)
            narrow, wide = (cast(nn.Linear, layer) for layer in cast(nn.Sequential, tail))
            # index_select, since its gradient takes a seventh of an index's
            own = x.index_select(0, rows)
            within = targets.index_select(0, rows) - bound.low
            if more := -len(rows) % multiple:
                own, within = pad(own, (0, 0, 0, more)), pad(within, (0, more), value=-1)
            yield rows, narrow(own), wide, within


def build(config: LanguageModelConfig) -> FullSoftmax | AdaptiveSoftmax:
    """The output layer that a configuration states."""
    return AdaptiveSoftmax(config) if config.cutoffs else FullSoftmax(config)
