"""Scales for 8-bit products, and what they do to a model.

A number x is stored as the byte round(x / s) + 128, s the scale of the product that reads it; a
weight as round(w / t), t the scale of its column. Their products' sums are exact, so a row's result
does not depend on the rows beside it. Some inputs have a few channels that are much larger than the
rest: there each channel is first divided by a factor, which its weights are multiplied by (Xiao et
al. 2023, eq. 3). And some have heavy tails, as numbers behind a gate do: there a scale can be each
row's own, its largest number over 127, where no frames are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from model.architecture import rounding
from model.architecture.causal import CausalModel
from model.architecture.gcnn import GCNN, CausalConv
from model.architecture.softmax import AdaptiveSoftmax
from model.core.config import ModelConfig
from model.core.gates import GATES
from model.core.weight_names import HEAD, INPUT, OUTPUT, convolution, shortcut, tail_in, tail_out


@dataclass(frozen=True, slots=True)
class Scale:
    """How an input is stored. range: the largest number it can hold. channels: float32 [C], what
    each channel is divided by before, or None. by_row: the range is each row's own largest number
    instead."""

    range: float
    channels: Tensor | None = None
    by_row: bool = False


Scales = dict[str, Scale]
"""How each product's input is stored, by the product's name."""

SMALLEST = 1e-9
"""The least that the largest number of a row counts as: a row of zeros has a scale too."""
LEVELS = 127
ZERO_POINT = 128
_CANDIDATES = np.linspace(0.1, 1.0, 91)
_VALUES = 1 << 18
"""Numbers of each product's input that a scale is chosen by."""


def products(model: GCNN) -> dict[str, nn.Module]:
    """The modules that are products, by the name under which their input is stored."""
    found: dict[str, nn.Module] = {}
    convolutions = (m for m in model.modules() if isinstance(m, CausalConv))
    found |= {convolution(index): conv for index, conv in enumerate(convolutions)}
    for number, block in enumerate(model.blocks):
        if getattr(block, "projection", None) is not None:
            found[shortcut(number)] = block.projection  # type: ignore[assignment]
    for name, layer in ((INPUT, model.input), (HEAD, model.head)):
        if layer is not None:
            found[name] = layer
    output = model.output
    if not isinstance(output, AdaptiveSoftmax):
        return found | {OUTPUT: output}
    found[OUTPUT] = output.head
    wide = {tail_out(i): tail[1] for i, tail in enumerate(output.tails)}  # type: ignore[index]
    return found | wide


def calibrate(model: GCNN, texts: Iterable[npt.NDArray[np.int64]]) -> Scales:
    """Scales by least squares over what the products of a model as stored read in texts.

    texts: int64 [N] each, the start symbol first. Of long texts some rows are taken.
    """
    seen: dict[str, list[Tensor]] = {name: [] for name in products(model)}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, inputs: seen[name].append(inputs[0].detach().flatten(0, -2))

    hooks = _hooks(m.register_forward_pre_hook(keep(n)) for n, m in products(model).items())
    with hooks, torch.inference_mode():
        for ids in texts:
            model(torch.from_numpy(ids)[None])
    evened = {OUTPUT, *absorbing_products(model.config).values()}
    return {name: _scale(torch.cat(v), evened=name in evened) for name, v in seen.items()}


def by_row(model: GCNN, scales: Scales) -> Scales:
    """Those of layers of one token behind a gate, but with a scale for every row."""
    layers = products(model)
    return {
        name: replace(scales[name], by_row=True)
        for name in absorbing_products(model.config).values()
        if isinstance(layer := layers[name], CausalConv) and not layer.layer.span
    }


def absorbing_products(config: ModelConfig) -> dict[str, str]:
    """Products whose own scales can divide the channels of the product behind them, at no cost.

    By name, the product behind as value: a layer that follows another in its block, behind a gate
    that is linear in the first half; the second matrix of a tail.
    """
    found = {tail_in(index): tail_out(index) for index in range(len(config.tails))}
    if not GATES[config.gate].linear:
        return found
    index = 0
    for _, layers in config.unrolled():
        for place in range(len(layers) - 1):
            found[convolution(index + place)] = convolution(index + place + 1)
        index += len(layers)
    return found


def _scale(values: Tensor, *, evened: bool) -> Scale:
    """values: [n, C], what a product read."""
    if not evened:
        return Scale(_least_squares(values.numpy()))
    # halfway between leaving the channels as they are and making them all alike
    channels = values.square().mean(0).sqrt().clamp(min=1e-6).sqrt()
    return Scale(_least_squares((values / channels).numpy()), channels)


def _least_squares(values: npt.NDArray[np.float32]) -> float:
    """The range [-r, r] whose 127 levels a side give back numbers [n, C] with the least squares."""
    largest = float(np.abs(values).max()) or 1.0
    values = values[:: max(1, values.size // _VALUES)]
    errors = []
    for range_ in largest * _CANDIDATES:
        step = range_ / LEVELS
        restored = np.clip(np.rint(values / step), -ZERO_POINT, LEVELS) * step
        errors.append(float(np.square(values - restored, dtype=np.float64).mean()))
    return float(largest * _CANDIDATES[int(np.argmin(errors))])


def row_steps(x: Tensor) -> Tensor:
    """x: [..., C] to the scale of each row, [..., 1]."""
    return x.abs().amax(-1, keepdim=True).clamp(min=SMALLEST) * (1 / LEVELS)


def factors_of(scale: Scale, weight: Tensor) -> Tensor:
    """What the rows of a weight [columns, k * C] are multiplied by, float32 [k * C]."""
    rows = weight.shape[1]
    if scale.channels is None:
        return torch.ones(rows)
    return scale.channels.repeat(rows // len(scale.channels))


def column_scales(weight: Tensor) -> Tensor:
    """weight: [columns, rows] to the scale of each column, float32 [columns].

    A weight on a grid keeps its numbers.
    """
    if (found := rounding.bytes_of(weight.T)) is not None:
        return torch.from_numpy(found[1])
    return weight.detach().float().abs().amax(1).clamp(min=1e-12) / LEVELS


@contextmanager
def rounded(model: GCNN, scales: Scales) -> Iterator[CausalModel]:
    """Within it a stored model computes what its 8-bit graph does, but for float32's rounding.

    Products without a scale stay as they are.
    """
    kept: list[tuple[nn.Module, nn.Parameter]] = []

    def store(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        scale = scales[name]
        factors = torch.ones(1) if scale.channels is None else scale.channels

        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            evened = inputs[0] / factors
            step = row_steps(evened) if scale.by_row else torch.tensor(scale.range / LEVELS)
            levels = (evened / step).round().clamp(-ZERO_POINT, LEVELS)
            return (levels * step * factors, *inputs[1:])

        return hook

    modules = {name: layer for name, layer in products(model).items() if name in scales}
    narrow: dict[str, nn.Module] = {}
    if isinstance(model.output, AdaptiveSoftmax) and OUTPUT in scales:  # reads what its head reads
        narrow = {tail_in(i): tail[0] for i, tail in enumerate(model.output.tails)}  # type: ignore[index]
    for name, layer in (modules | narrow).items():
        weight = cast(nn.Parameter, layer.weight)
        factors = factors_of(scales[name if name in modules else OUTPUT], weight)
        steps = column_scales(weight * factors)[:, None] / factors
        kept.append((layer, weight))
        # a parameter of its own: a tied embedding is looked up, and not rounded
        layer.weight = nn.Parameter((weight.detach() / steps).round() * steps)
    stored = [*modules.items(), *((OUTPUT, module) for module in narrow.values())]
    try:
        with _hooks(m.register_forward_pre_hook(store(n)) for n, m in stored):
            yield model
    finally:
        for layer, weight in kept:
            layer.weight = weight


@contextmanager
def _hooks(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    held = list(handles)
    try:
        yield
    finally:
        for handle in held:
            handle.remove()
