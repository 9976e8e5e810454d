"""Scales for 8-bit products, and what they do to a model.

A number x is stored as the byte round(x / s) + 128, s the scale of the product that reads it; a
weight as round(w / t), t the scale of its column. Their products' sums are exact, so a row's result
does not depend on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from model.causal import CausalModel
from model.gcnn import GCNN, CausalConv
from model.softmax import AdaptiveSoftmax

Scales = dict[str, float]
"""For each product's input the largest number that it can hold, by the product's name."""

LEVELS = 127
ZERO_POINT = 128
_CANDIDATES = np.linspace(0.1, 1.0, 91)
_VALUES = 1 << 18
"""Numbers of each product's input that a scale is chosen by."""


def products(model: GCNN) -> dict[str, nn.Module]:
    """The modules that are products, by the name under which their input is stored."""
    found: dict[str, nn.Module] = {}
    convolutions = (m for m in model.modules() if isinstance(m, CausalConv))
    found |= {f"conv_{index}": conv for index, conv in enumerate(convolutions)}
    for number, block in enumerate(model.blocks):
        if getattr(block, "projection", None) is not None:
            found[f"projection_{number}"] = block.projection  # type: ignore[assignment]
    for name, layer in (("input", model.input), ("head", model.head)):
        if layer is not None:
            found[name] = layer
    output = model.output
    if not isinstance(output, AdaptiveSoftmax):
        return found | {"output": output}
    found["output"] = output.head
    wide = {f"tail_{i}_out": tail[1] for i, tail in enumerate(output.tails)}  # type: ignore[index]
    return found | wide


def calibrate(model: GCNN, texts: Iterable[npt.NDArray[np.int64]]) -> Scales:
    """Scales by least squares over what the products of a folded model read in texts.

    texts: int64 [N] each, the start symbol first.
    """
    seen: dict[str, list[Tensor]] = {name: [] for name in products(model)}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, inputs: seen[name].append(inputs[0].detach().flatten())

    hooks = _hooks(m.register_forward_pre_hook(keep(n)) for n, m in products(model).items())
    with hooks, torch.inference_mode():
        for ids in texts:
            model(torch.from_numpy(ids)[None])
    return {name: _least_squares(torch.cat(values).numpy()) for name, values in seen.items()}


def _least_squares(values: npt.NDArray[np.float32]) -> float:
    """The range [-r, r] whose 127 levels a side give back the numbers with the least squares."""
    values = values[:: max(1, len(values) // _VALUES)]
    largest = float(np.abs(values).max()) or 1.0
    errors = []
    for range_ in largest * _CANDIDATES:
        step = range_ / LEVELS
        restored = np.clip(np.rint(values / step), -ZERO_POINT, LEVELS) * step
        errors.append(float(np.square(values - restored, dtype=np.float64).mean()))
    return float(largest * _CANDIDATES[int(np.argmin(errors))])


def column_scales(weight: Tensor) -> Tensor:
    """weight: [columns, rows] to the scale of each column, float32 [columns]."""
    return weight.detach().float().abs().amax(1).clamp(min=1e-12) / LEVELS


@contextmanager
def rounded(model: GCNN, scales: Scales) -> Iterator[CausalModel]:
    """Within it a folded model computes what its 8-bit graph does, but for float32's rounding."""
    kept: list[tuple[nn.Module, nn.Parameter]] = []

    def store(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        step = scales[name] / LEVELS

        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            levels = (inputs[0] / step).round().clamp(-ZERO_POINT, LEVELS)
            return (levels * step, *inputs[1:])

        return hook

    modules = products(model)
    narrow = {}
    if isinstance(model.output, AdaptiveSoftmax):  # reads what the head's columns read
        narrow = {f"tail_{i}_in": tail[0] for i, tail in enumerate(model.output.tails)}  # type: ignore[index]
    for layer in (modules | narrow).values():
        weight = cast(nn.Parameter, layer.weight)
        steps = column_scales(weight)[:, None]
        kept.append((layer, weight))
        # a parameter of its own: a tied embedding is looked up, and not rounded
        layer.weight = nn.Parameter((weight.detach() / steps).round() * steps)
    stored = [*modules.items(), *(("output", module) for module in narrow.values())]
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
