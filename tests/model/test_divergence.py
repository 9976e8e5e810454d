"""Scales chosen by what rounding does to a model's distributions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model import quantize
from model.data import Corpus
from model.divergence import Divergence, refined
from model.gcnn import GCNN
from model.graph import Indices


@pytest.fixture(scope="module")
def stored(adaptive_model: GCNN) -> GCNN:
    return adaptive_model.stored()


@pytest.fixture(scope="module")
def texts(calibration: Corpus) -> list[Indices]:
    return [np.array(calibration.tokens[n : n + 40], np.int64) for n in (0, 40, 80)]


@pytest.fixture(scope="module")
def scales(stored: GCNN, texts: list[Indices]) -> quantize.Scales:
    return quantize.calibrate(stored, texts)


def test_the_divergence_is_that_of_the_definition(
    stored: GCNN, texts: list[Indices], scales: quantize.Scales
) -> None:
    divergence = Divergence(stored, texts)
    assert divergence.of({}) == 0
    rows = []
    with torch.inference_mode():
        for ids in texts:
            exact = stored(torch.from_numpy(ids)[None])[0].double()
            with quantize.rounded(stored, scales):
                found = stored(torch.from_numpy(ids)[None])[0].double()
            rows.append((exact.exp() * (exact - found)).sum(-1))
    expected = float(torch.cat(rows).mean())
    assert expected > 0
    assert divergence.of(scales) == pytest.approx(expected, rel=1e-3)


def test_products_without_a_scale_stay_as_they_are(stored: GCNN, scales: quantize.Scales) -> None:
    before = {name: layer.weight for name, layer in quantize.products(stored).items()}
    with quantize.rounded(stored, {"conv_2": scales["conv_2"]}):
        layers = quantize.products(stored)
        assert [name for name in before if layers[name].weight is not before[name]] == ["conv_2"]
    assert all(layer.weight is before[name] for name, layer in layers.items())


def test_a_range_that_cuts_off_what_matters_is_widened(
    stored: GCNN, texts: list[Indices], scales: quantize.Scales
) -> None:
    divergence = Divergence(stored, texts)
    given = scales["conv_2"]
    narrow = quantize.Scale(given.range / 8, given.channels)
    found = refined(stored, scales | {"conv_2": narrow}, texts, limit=1.0)["conv_2"]
    assert found.range > 2 * narrow.range
    assert divergence.of({"conv_2": found}) < 0.5 * divergence.of({"conv_2": narrow})
    wider = quantize.Scale(found.range * 1.25, found.channels)
    assert divergence.of({"conv_2": wider}) >= divergence.of({"conv_2": found})


@pytest.mark.parametrize(("limit", "by_row"), [(0.0, ["conv_3"]), (1.0, [])])
def test_scales_by_row_are_given_until_the_limit_holds(
    stored: GCNN,
    texts: list[Indices],
    scales: quantize.Scales,
    limit: float,
    by_row: list[str],
) -> None:
    found = refined(stored, scales, texts, limit)
    assert found.keys() == scales.keys()
    assert [name for name, scale in found.items() if scale.by_row] == by_row
