"""How far rounding moves a model's distributions, and the scales that move them least.

Least squares take no account of what a number does: a few large ones that they cut off can cost
more than coarser steps for all. So ranges are widened, and scales by row given to single layers, by
the Kullback-Leibler divergence of the next token's distribution from the unrounded model's. Unlike
the perplexity of some texts it has hardly any noise, and little text is enough.
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
"""Tokens that the divergence is taken over, and how many the beginnings of texts have at most."""
_MULTIPLICATIONS = 1e11
"""How many a pass over the tokens may take: for large models there are fewer tokens."""
_LEAST_TOKENS = 512
"""How many there are for the largest."""
_WIDER = 1.25
"""By how much a range is widened at a time."""


class Divergence:
    """How far a model's distributions are from those that it has with some products rounded.

    model: as stored, float32. texts: int64 [N] each, the start symbol first; as many of them as are
    needed are taken, from all parts of the list.
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
        """What rounding the products that have a scale costs, in nats per token."""
        found, count = 0.0, 0
        with quantize.rounded(self._model, scales) as model:
            for ids, hidden in zip(self._texts, self._hidden, strict=True):
                exact = self._exact.logprobs(hidden)  # not kept: [1, N, V] of every text
                difference = exact - model(ids)
                found += float((exact.exp_() * difference).sum(dtype=torch.float64))
                count += ids.numel()
        return found / count


def refined(
    model: GCNN, scales: Scales, texts: Sequence[npt.NDArray[np.int64]], limit: float
) -> Scales:
    """Better scales than those by least squares, for a model as stored.

    Ranges are widened as long as that helps their product. Then layers that can have a scale for
    every row get one where it helps, those first that gain most by it alone, until all products
    together cost no more than `limit` nats per token. texts: see `Divergence`.
    """
    divergence = Divergence(model, texts)
    widened = {name: _widened(divergence, name, scale) for name, scale in scales.items()}
    found = {name: scale for name, (scale, _) in widened.items()}
    rows = quantize.by_row(model, found)
    gains = {name: widened[name][1] - divergence.of({name: rows[name]}) for name in rows}
    cost = divergence.of(found)
    for name in sorted(gains, key=gains.__getitem__, reverse=True):
        if cost <= limit:
            break
        tried = found | {name: rows[name]}
        if (now := divergence.of(tried)) < cost:
            found, cost = tried, now
    return found


def _widened(divergence: Divergence, name: str, scale: Scale) -> tuple[Scale, float]:
    """The scale with the range that costs least, and what it costs alone."""
    least = divergence.of({name: scale})
    while True:
        wider = replace(scale, range=scale.range * _WIDER)
        found = divergence.of({name: wider})
        if not found < least:
            return scale, least
        scale, least = wider, found
