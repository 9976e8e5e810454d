"""The bound on what enters a block."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from model.architecture.clip import clamp


def test_a_number_beyond_the_bound_can_only_come_back() -> None:
    x = torch.tensor([-5.0, -5.0, -1.0, 1.0, 2.0, 5.0, 5.0], requires_grad=True)
    towards = torch.tensor([1.0, -1.0, 1.0, -1.0, -1.0, 1.0, -1.0])  # its negative is the way
    found = clamp(x, 2.0)
    assert found.tolist() == [-2.0, -2.0, -1.0, 1.0, 2.0, 2.0, 2.0]
    found.backward(towards)
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, -1.0, 1.0, -1.0, -1.0, 1.0, 0.0]


def test_a_number_far_beyond_is_brought_back_by_descent() -> None:
    x = torch.tensor([40.0], requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        (clamp(x, 4.0) - 1.0).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(x.detach(), torch.tensor([1.0]))


@given(seed=st.integers(0, 2**31), bound=st.sampled_from([0.1, 1.0, 5.0]))
def test_gradients_are_those_of_the_definition(seed: int, bound: float) -> None:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 4, 5, generator=random).transpose(0, 2).requires_grad_()
    gradient = torch.randn(4, 5, 3, generator=random).permute(1, 0, 2)
    found = clamp(x, bound)
    assert torch.equal(found, x.clamp(-bound, bound))
    (own,) = torch.autograd.grad(found, x, gradient)
    further = ((x > bound) & (gradient < 0)) | ((x < -bound) & (gradient > 0))
    assert torch.equal(own, gradient.masked_fill(further, 0.0))


def test_numbers_within_the_bound_pass_as_they_are() -> None:
    x = torch.tensor([-2.0, 0.5, 2.0], requires_grad=True)
    assert clamp(x, 2.0) is x
    assert clamp(torch.tensor([float("nan"), 3.0]), 2.0).isnan().tolist() == [True, False]
