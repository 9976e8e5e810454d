"""Cross entropy in parts: PyTorch's numbers and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model import cross_entropy


@given(
    rows=st.integers(0, 40),
    columns=st.integers(1, 300),
    room=st.integers(1, 4000),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_losses_and_gradients_are_those_of_pytorch(
    rows: int, columns: int, room: int, dtype: torch.dtype, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    logits = (8 * torch.randn(rows, columns, generator=random)).to(dtype).requires_grad_()
    targets = torch.randint(columns, (rows,), generator=random)
    weights = torch.randn(rows, generator=random)
    expected = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
    (wanted,) = torch.autograd.grad(expected, logits, weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "_NUMBERS_AT_ONCE", room)
        found = cross_entropy.losses(logits, targets)
        (gradient,) = torch.autograd.grad(found, logits, weights)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-6)
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, wanted)
