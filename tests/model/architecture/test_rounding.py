"""Tables in 8 bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from model.architecture import rounding

TABLES = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, max_side=12),
    elements=st.floats(-1e4, 1e4, width=32),
)


@given(TABLES)
def test_a_rounded_table_is_bytes_times_scales_and_rounds_to_itself(values: np.ndarray) -> None:
    rounded = rounding.round_to_bytes(torch.from_numpy(values))
    numbers, scales = rounding.require_bytes(rounded)
    np.testing.assert_array_equal(numbers * scales, rounded.numpy())
    assert numbers.size == 0 or numbers.min() >= -127
    torch.testing.assert_close(rounding.round_to_bytes(rounded), rounded, rtol=0, atol=0)


def test_a_table_that_was_not_rounded_is_not_stored_as_another() -> None:
    table = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).half().float()
    with pytest.raises(ValueError, match="round it first"):
        rounding.require_bytes(table)


def test_numbers_of_a_column_lose_a_hundredth_of_their_spread() -> None:
    table = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0))
    table *= torch.tensor([1e-3, 1.0, 50.0])
    lost = (rounding.round_to_bytes(table) - table).std(0) / table.std(0)
    assert float(lost.max()) < 0.012


def test_a_few_large_numbers_do_not_cost_the_rest_their_digits() -> None:
    table = torch.randn(100_000, 1, generator=torch.Generator().manual_seed(0))
    table[0] = 20.0
    rounded = rounding.round_to_bytes(table)
    numbers, scales = rounding.require_bytes(rounded)
    assert float(scales[0]) < 0.7 * 20 / 127
    assert numbers[0] == 127


@given(TABLES, st.sampled_from([0.05, 0.2, 1.0]))
def test_a_weight_on_a_grid_is_bytes_times_scales(values: np.ndarray, spacing: float) -> None:
    gridded = rounding.on_grid(torch.from_numpy(values), spacing)
    numbers, scales = rounding.require_bytes(gridded)
    np.testing.assert_array_equal(numbers * scales, gridded.numpy())


def test_a_grid_has_the_spacing_asked_for_and_float16_holds_its_multiples() -> None:
    weight = 0.1 * torch.randn(300, 200, generator=torch.Generator().manual_seed(0))
    gridded = rounding.on_grid(weight, 0.2)
    least = float(gridded[gridded > 0].min())
    assert 0.017 <= least <= 0.023
    assert float((gridded - weight).abs().max()) <= least / 2 + 1e-6
    torch.testing.assert_close(gridded.half().float(), gridded, rtol=0, atol=0)


def test_a_weight_in_float16_is_not_taken_for_bytes() -> None:
    weight = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).half().float()
    assert rounding.bytes_of(weight) is None


def test_a_weight_of_zeros_is_bytes_and_one_that_is_not_finite_is_none() -> None:
    zeros = torch.zeros(3, 2)
    torch.testing.assert_close(rounding.on_grid(zeros, 0.2), zeros)
    assert not rounding.require_bytes(zeros)[0].any()
    for number in (torch.inf, torch.nan):
        assert rounding.bytes_of(rounding.on_grid(torch.tensor([[number, 1.0]]), 0.2)) is None
