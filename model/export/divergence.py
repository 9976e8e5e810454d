"""How far rounding moves a model's distributions, and the scales that move them least.

Least squares ignore the effect of a number: a few large numbers cut off can cost more than coarser
steps for all. So ranges are widened, and single layers get scales by row, by the Kullback-Leibler
divergence of the next token's distribution from the unrounded model's. Unlike the perplexity of
some texts it has little noise, so that little text is enough.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.architecture.gcnn import GCNN
from model.export import quantize
from model.export.quantize import Scale, Scales

_TOKENS, _LENGTH = 4096, 128
"""Tokens that the divergence is computed over, and the longest beginning of a text."""
_MULTIPLICATIONS = 1e11
"""The most for a pass over the tokens: for large models there are fewer tokens."""
_LEAST_TOKENS = 512
"""The least number of tokens, for the largest models."""
_WIDER = 1.25
"""Factor by which a range is widened at a time."""


class Divergence:
    """How far rounding some products moves a model's distributions.

    model: as stored, float32. texts: int64 [N] each, the start symbol first; some are used, from
    all parts of the list.
    """

    def __init__(self, model: GCNN, texts: Sequence[npt.NDArray[np.int64]]) -> None:
        self._model = model
        self._exact = copy.deepcopy(model.output)
        weights = (cast(Tensor, layer.weight) for layer in quantize.products(model).values())
        affordable = _MULTIPLICATIONS / sum(weight.numel() for weight in weights)
        tokens = max(_LEAST_TOKENS, min(_TOKENS, affordable))
        length = float(np.mean([len(ids[:_LENGTH]) for ids in texts]))
        count = min(len(texts), math.ceil(tokens / length))
        chosen = np.linspace(0, len(texts) - 1, count).round().astype(int)
        self._texts = [torch.from_numpy(texts[n][:_LENGTH])[None] for n in chosen]
        with torch.inference_mode():
            self._hidden = [model.hidden(ids) for ids in self._texts]

    @torch.inference_mode()
    def of(self, scales: Scales) -> float:
        """The divergence caused by rounding the products with a scale, in nats per token."""
        total, count = 0.0, 0
        with quantize.rounding_products(self._model, scales) as model:
            for ids, hidden in zip(self._texts, self._hidden, strict=True):
                exact = self._exact.logprobs(hidden)  # not kept: [1, N, V] of every text
                difference = exact - model(ids)
                total += float((exact.exp_() * difference).sum(dtype=torch.float64))
                count += ids.numel()
        return total / count


def refine(
    model: GCNN, scales: Scales, texts: Sequence[npt.NDArray[np.int64]], limit: float
) -> Scales:
    """Improves scales of a stored model that were chosen by least squares.

    Each range is widened as long as that lowers the divergence. Then layers that can have scales by
    row get them where this helps, the layer that gains most first, until the divergence of all
    products together is at most `limit` nats per token. texts: see `Divergence`.
    """
    divergence = Divergence(model, texts)
    widened = {name: _widen(divergence, name, scale) for name, scale in scales.items()}
    refined = {name: scale for name, (scale, _) in widened.items()}
    rows = quantize.by_row(model, refined)
    gains = {name: widened[name][1] - divergence.of({name: rows[name]}) for name in rows}
    cost = divergence.of(refined)
    for name in sorted(gains, key=gains.__getitem__, reverse=True):
        if cost <= limit:
            break
        tried = refined | {name: rows[name]}
        if (now := divergence.of(tried)) < cost:
            refined, cost = tried, now
    return refined


def _widen(divergence: Divergence, name: str, scale: Scale) -> tuple[Scale, float]:
    """The scale with the best range, and its divergence without other rounding."""
    least = divergence.of({name: scale})
    while True:
        wider = replace(scale, range=scale.range * _WIDER)
        cost = divergence.of({name: wider})
        if not cost < least:
            return scale, least
        scale, least = wider, cost
