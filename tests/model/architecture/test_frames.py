"""Frames of a convolution side by side: what padding, masking and joining would give."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from model.architecture.frames import side_by_side
from model.core.config import Layer

SIZES = {
    "rows": st.integers(1, 3),
    "length": st.integers(1, 12),
    "channels": st.integers(1, 4),
    "kernel": st.integers(1, 4),
    "dilation": st.integers(1, 5),
    "texts": st.booleans(),
    "seed": st.integers(0, 2**31),
}


def one_by_one(x: torch.Tensor, layer: Layer, positions: torch.Tensor | None) -> torch.Tensor:
    """The definition, a frame at a time."""
    found = []
    for tap in range(layer.kernel):
        back = tap * layer.dilation
        for row in range(x.shape[0]):
            for token in range(x.shape[1]):
                begun = token - back if positions is None else int(positions[row, token]) - back
                seen = token >= back and begun >= 0
                found.append(x[row, token - back] if seen else torch.zeros_like(x[0, 0]))
    by_tap = torch.stack(found).view(layer.kernel, *x.shape)
    return torch.cat(list(by_tap), -1)


@given(**SIZES)
def test_frames_and_gradients_are_those_of_the_definition(
    rows: int, length: int, channels: int, kernel: int, dilation: int, texts: bool, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    layer = Layer(kernel=kernel, inputs=channels, outputs=1, dilation=dilation)
    x = torch.randn(rows, length, channels, generator=random, dtype=torch.float64)
    x.requires_grad_()
    positions = None
    if texts:
        starts = torch.rand(rows, length, generator=random) < 0.3
        position = torch.arange(length)
        positions = position - torch.where(starts, position, -100).cummax(1).values
    found, expected = side_by_side(x, layer, positions), one_by_one(x, layer, positions)
    assert torch.equal(found, expected)
    weights = torch.randn(found.shape, generator=random, dtype=torch.float64)
    own, wanted = (torch.autograd.grad((y * weights).sum(), x)[0] for y in (found, expected))
    torch.testing.assert_close(own, wanted)


def test_in_autocast_frames_are_bfloat16_and_gradients_come_back_as_they_are() -> None:
    x = torch.randn(2, 9, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = side_by_side(x, Layer(kernel=2, inputs=3, outputs=1, dilation=4), None)
    assert found.dtype == torch.bfloat16
    found.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    expected = torch.tensor([2.0] * 5 + [1.0] * 4)[None, :, None].expand(2, 9, 3)
    assert torch.equal(x.grad, expected)


def test_in_autocast_frames_before_a_text_are_zeros_too() -> None:
    x = torch.randn(2, 9, 3)
    layer = Layer(kernel=3, inputs=3, outputs=1, dilation=2)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]).expand(2, 9)
    with torch.autocast("cpu", torch.bfloat16):
        found = side_by_side(x, layer, positions)
    assert torch.equal(found, one_by_one(x, layer, positions).bfloat16())
