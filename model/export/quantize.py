"""Scales for 8-bit products, and what they do to a model.

A number x is stored as the byte round(x / s) + 128, where s is the scale of the product that reads
it; a weight as round(w / t), where t is the scale of its column. The sums of their products are
exact, so a row's result does not depend on the other rows. Some inputs have a few channels that are
much larger than the rest: there each channel is first divided by a factor, and its weights are
multiplied by it (Xiao et al. 2023, eq. 3). Other inputs have heavy tails, such as the output of a
gate: there each row can have a scale, its largest number over 127, if no frames are kept.
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
    """How an input is stored. range: the largest number that it can hold. channels: float32 [C],
    factors that channels are divided by first, or None. by_row: the range of each row is its
    largest number instead."""

    range: float
    channels: Tensor | None = None
    by_row: bool = False


Scales = dict[str, Scale]
"""How the input of each product is stored, by the product's name."""

SMALLEST = 1e-9
"""The least range of a row, so that a row of zeros has a scale."""
LEVELS = 127
ZERO_POINT = 128
_CANDIDATES = np.linspace(0.1, 1.0, 91)
_VALUES = 1 << 18
"""How many numbers of each product's input a scale is chosen by."""


def products(model: GCNN) -> dict[str, nn.Module]:
    """The modules that are products, by the names of their inputs."""
    modules: dict[str, nn.Module] = {}
    convolutions = (m for m in model.modules() if isinstance(m, CausalConv))
    modules |= {convolution(index): conv for index, conv in enumerate(convolutions)}
    for number, block in enumerate(model.blocks):
        if block.projection is not None:
            modules[shortcut(number)] = cast(nn.Linear, block.projection)
    for name, layer in ((INPUT, model.input), (HEAD, model.head)):
        if layer is not None:
            modules[name] = layer
    output = model.output
    if not isinstance(output, AdaptiveSoftmax):
        return modules | {OUTPUT: output}
    modules[OUTPUT] = output.head
    wide = {tail_out(i): tail[1] for i, tail in enumerate(output.tails)}  # type: ignore[index]
    return modules | wide


def calibrate(model: GCNN, texts: Iterable[npt.NDArray[np.int64]]) -> Scales:
    """Scales of a stored model by least squares over the inputs of its products in some texts.

    texts: int64 [N] each, the start symbol first. Of many rows only some are used.
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
    """Scales by row for the layers of one token whose input is the output of a gate."""
    layers = products(model)
    return {
        name: replace(scales[name], by_row=True)
        for name in absorbing_products(model.config).values()
        if isinstance(layer := layers[name], CausalConv) and not layer.layer.span
    }


def absorbing_products(config: ModelConfig) -> dict[str, str]:
    """Products whose column scales can absorb the channel factors of the next product, by name,
    with the next product as value.

    These are layers followed by another in their block, if the gate between is linear in its first
    half, and the first matrices of tails.
    """
    absorbing = {tail_in(index): tail_out(index) for index in range(len(config.tails))}
    if not GATES[config.gate].linear:
        return absorbing
    index = 0
    for _, layers in config.unrolled():
        for number in range(index, index + len(layers) - 1):
            absorbing[convolution(number)] = convolution(number + 1)
        index += len(layers)
    return absorbing


def _scale(values: Tensor, *, evened: bool) -> Scale:
    """values: [n, C], the input of a product. evened: with factors for its channels."""
    if not evened:
        return Scale(_least_squares(values.numpy()))
    # halfway between no factors and channels of equal size
    channels = values.square().mean(0).sqrt().clamp(min=1e-6).sqrt()
    return Scale(_least_squares((values / channels).numpy()), channels)


def _least_squares(values: npt.NDArray[np.float32]) -> float:
    """The range r for which rounding numbers [n, C] to 127 levels up to r has the least squares."""
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
    """The factors for the rows of a weight [columns, k * C], float32 [k * C]."""
    rows = weight.shape[1]
    if scale.channels is None:
        return torch.ones(rows)
    return scale.channels.repeat(rows // len(scale.channels))


def column_scales(weight: Tensor) -> Tensor:
    """weight: [columns, rows] to the scale of each column, float32 [columns].

    A weight that bytes stand for keeps its numbers.
    """
    if (stored := rounding.bytes_of(weight.T)) is not None:
        return torch.from_numpy(stored[1])
    return weight.detach().float().abs().amax(1).clamp(min=1e-12) / LEVELS


@contextmanager
def rounding_products(model: GCNN, scales: Scales) -> Iterator[CausalModel]:
    """Within the block a stored model computes as its 8-bit graph, up to float32's rounding.

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
    # the tails read the same input as the head
    if isinstance(model.output, AdaptiveSoftmax) and OUTPUT in scales:
        narrow = {tail_in(i): tail[0] for i, tail in enumerate(model.output.tails)}  # type: ignore[index]
    for name, layer in (modules | narrow).items():
        weight = cast(nn.Parameter, layer.weight)
        factors = factors_of(scales[name if name in modules else OUTPUT], weight)
        steps = column_scales(weight * factors)[:, None] / factors
        kept.append((layer, weight))
        # a new parameter: the same weight may be an embedding, which is not rounded
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
