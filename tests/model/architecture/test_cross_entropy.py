"""Cross entropy in blocks and parts: PyTorch's numbers and gradients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy as whole
from torch.utils._python_dispatch import TorchDispatchMode

from model.architecture import cross_entropy
from model.architecture.softmax import build
from model.core.config import ModelConfig


@dataclass(frozen=True)
class Case:
    """A layer, rows in front of it, and the sizes of the pieces in which losses are computed."""

    rows: int
    columns: int
    width: int
    block: int
    part: int
    multiple: int
    biased: bool
    seed: int

    def drawn(self) -> tuple[torch.Tensor, nn.Linear, torch.Tensor]:
        """x, which wants a gradient, a layer and targets, a few of them -100."""
        random = torch.Generator().manual_seed(self.seed)
        layer = nn.Linear(self.width, self.columns, bias=self.biased)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(3 * torch.randn(parameter.shape, generator=random))
        x = (3 * torch.randn(self.rows, self.width, generator=random)).requires_grad_()
        targets = torch.randint(self.columns, (self.rows,), generator=random)
        return x, layer, targets.where(torch.rand(self.rows, generator=random) > 0.2, -100)

    def computed(
        self, x: torch.Tensor, layer: nn.Linear, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The losses of the targets that count, and the sum."""
        counted = targets >= 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cross_entropy, "_LOGITS_AT_ONCE", self.block)
            patch.setattr(cross_entropy, "_NUMBERS_AT_ONCE", self.part)
            patch.setattr(cross_entropy, "ROWS", self.multiple)
            losses = cross_entropy.losses(x[counted], layer, targets[counted])
            return losses, cross_entropy.total(x, layer, targets)


CASES = st.builds(
    Case,
    rows=st.integers(0, 40),
    columns=st.integers(1, 300),
    width=st.integers(1, 20),
    block=st.integers(1, 4000),
    part=st.integers(1, 2000),
    multiple=st.integers(1, 8),
    biased=st.booleans(),
    seed=st.integers(0, 2**31),
)


@given(CASES)
def test_sums_and_gradients_are_those_of_pytorch(case: Case) -> None:
    x, layer, targets = case.drawn()
    inputs = [x, *layer.parameters()]
    expected = whole(layer(x), targets, reduction="none")  # of -100 it is 0
    wanted = torch.autograd.grad(expected.sum() / 7, inputs)
    losses, total = case.computed(x, layer, targets)
    found = torch.autograd.grad(total / 7, inputs)
    torch.testing.assert_close(losses, expected[targets >= 0], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(total, expected.sum(), atol=1e-3, rtol=1e-5)
    for own, its in zip(found, wanted, strict=True):
        torch.testing.assert_close(own, its, atol=1e-4, rtol=1e-4)


@given(CASES)
def test_in_autocast_products_are_bfloat16_and_sums_are_not(case: Case) -> None:
    x, layer, targets = case.drawn()
    inputs = [x, *layer.parameters()]
    rounded = [each.detach().bfloat16().double().requires_grad_() for each in inputs]
    logits = torch.nn.functional.linear(*rounded)
    expected = whole(logits, targets, reduction="none")
    wanted = torch.autograd.grad(expected.sum(), rounded)
    with torch.autocast("cpu", torch.bfloat16):
        losses, total = case.computed(x, layer, targets)
    found = torch.autograd.grad(total, inputs)
    assert losses.dtype == total.dtype == torch.float32
    # a logit's rounding, twice
    off = 2**-7 * (1 + logits.abs().max().item() if case.rows else 1)
    assert not len(losses) or (losses - expected[targets >= 0]).abs().max().item() <= off
    assert total.item() == pytest.approx(losses.double().sum().item(), abs=1e-3, rel=1e-5)
    for own, its in zip(found, wanted, strict=True):
        scale = max(1.0, its.abs().max().item() if its.numel() else 0.0)
        assert own.dtype == torch.float32
        # a probability moves by an eighth of it, a sum over rows by several times that
        torch.testing.assert_close(own.double() / scale, its / scale, atol=0.25 * off, rtol=0.02)


def test_sums_over_many_blocks_lose_nothing() -> None:
    """Of 4,096 rows that point one way: bfloat16 would stop to grow after some 256."""
    x = torch.ones(4096, 4, requires_grad=True)
    layer = nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
    targets = torch.zeros(4096, dtype=torch.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "_LOGITS_AT_ONCE", 1)
        patch.setattr(cross_entropy, "ROWS", 1)
        with torch.autocast("cpu", torch.bfloat16):
            total = cross_entropy.total(x, layer, targets)
        weight, bias = torch.autograd.grad(total, [layer.weight, layer.bias])
    assert total.item() == pytest.approx(4096 * np.log(3), rel=1e-6)
    expected = 4096 * torch.tensor([-2.0, 1.0, 1.0]) / 3
    torch.testing.assert_close(bias, expected, rtol=0.01, atol=0)
    torch.testing.assert_close(weight, expected[:, None].expand(3, 4), rtol=0.01, atol=0)


def adaptive() -> nn.Module:
    """Of 50 tokens in three clusters, 20 channels."""
    config = ModelConfig.model_validate(
        {"vocabulary": 50, "embedding": 20, "cutoffs": (7, 20), "blocks": [{"layers": [[2, 20]]}]}
    )
    return build(config)


def test_an_adaptive_softmax_leaves_out_what_does_not_count() -> None:
    softmax = adaptive()
    x = torch.randn(90, 20, requires_grad=True)
    targets = torch.randint(50, (90,))
    targets[::7] = -100
    inputs = [x, *softmax.parameters()]
    expected = -softmax.logprobs(x).gather(1, targets.clamp(min=0)[:, None])[targets >= 0].sum()
    wanted = torch.autograd.grad(expected, inputs)
    total = softmax.total(x, targets)
    torch.testing.assert_close(total, expected)
    found = torch.autograd.grad(total, inputs)
    for own, its in zip(found, wanted, strict=True):
        torch.testing.assert_close(own, its, atol=1e-5, rtol=1e-4)


class Shapes(TorchDispatchMode):
    """Notes the sizes of every matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            a, b = args[-2:]
            self.found.add((*a.shape, b.shape[1]))
        return func(*args, **(kwargs or {}))


def test_batches_of_any_targets_have_products_of_few_shapes() -> None:
    """A shape that was not met before costs the compilation of its product."""
    softmax = adaptive()
    with Shapes() as shapes, pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "_LOGITS_AT_ONCE", 30 * 100)  # several blocks
        for batch in range(30):
            torch.manual_seed(batch)
            targets = torch.randint(50, (320,))
            targets[torch.rand(320) < 0.02 * batch] = -100
            softmax.total(torch.randn(320, 20, requires_grad=True), targets).backward()
    for shape in shapes.found:
        batch_sizes = set(shape) - {20, 5, 2, 1, 9, 13, 30}
        assert all(size % cross_entropy.ROWS == 0 for size in batch_sizes), shape
    assert len(shapes.found) < 40


def test_a_target_beyond_the_vocabulary_is_an_error() -> None:
    softmax = adaptive()
    for target in (50, 500):
        with pytest.raises((IndexError, RuntimeError)):
            softmax.total(torch.randn(3, 20), torch.tensor([1, target, 30]))
