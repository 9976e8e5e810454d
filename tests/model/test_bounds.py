"""The bound on what enters a block."""

from __future__ import annotations

import torch

from model.bounds import bounded


def test_a_number_beyond_the_bound_can_only_come_back() -> None:
    x = torch.tensor([-5.0, -5.0, -1.0, 1.0, 2.0, 5.0, 5.0], requires_grad=True)
    towards = torch.tensor([1.0, -1.0, 1.0, -1.0, -1.0, 1.0, -1.0])  # its negative is the way
    found = bounded(x, 2.0)
    assert found.tolist() == [-2.0, -2.0, -1.0, 1.0, 2.0, 2.0, 2.0]
    found.backward(towards)
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, -1.0, 1.0, -1.0, -1.0, 1.0, 0.0]


def test_a_number_far_beyond_is_brought_back_by_descent() -> None:
    x = torch.tensor([40.0], requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        (bounded(x, 4.0) - 1.0).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(x.detach(), torch.tensor([1.0]))
