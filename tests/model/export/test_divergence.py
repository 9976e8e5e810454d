"""Scales chosen by what rounding does to a model's distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from model.architecture.gcnn import GCNN
from model.core.config import Block, ModelConfig
from model.core.graph import Indices
from model.core.tokenizer import Tokenizer
from model.data.corpus import Corpus
from model.export import quantize
from model.export.divergence import Divergence, refine


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
    assert divergence.of({}) == pytest.approx(0, abs=1e-6)
    rows = []
    with torch.inference_mode():
        for ids in texts:
            exact = stored(torch.from_numpy(ids)[None])[0].double()
            with quantize.rounding_products(stored, scales):
                found = stored(torch.from_numpy(ids)[None])[0].double()
            rows.append((exact.exp() * (exact - found)).sum(-1))
    expected = float(torch.cat(rows).mean())
    assert expected > 0
    assert divergence.of(scales) == pytest.approx(expected, rel=1e-3)


def test_products_without_a_scale_stay_as_they_are(stored: GCNN, scales: quantize.Scales) -> None:
    before = {name: layer.weight for name, layer in quantize.products(stored).items()}
    with quantize.rounding_products(stored, {"conv_2": scales["conv_2"]}):
        layers = quantize.products(stored)
        assert [name for name in before if layers[name].weight is not before[name]] == ["conv_2"]
    assert all(layer.weight is before[name] for name, layer in layers.items())


def test_a_range_that_cuts_off_what_matters_is_widened(
    stored: GCNN, texts: list[Indices], scales: quantize.Scales
) -> None:
    divergence = Divergence(stored, texts)
    given = scales["conv_2"]
    narrow = quantize.Scale(given.range / 8, given.channels)
    found = refine(stored, scales | {"conv_2": narrow}, texts, limit=1.0)["conv_2"]
    assert found.range > 2 * narrow.range
    assert divergence.of({"conv_2": found}) < 0.5 * divergence.of({"conv_2": narrow})
    wider = quantize.Scale(found.range * 1.25, found.channels)
    assert divergence.of({"conv_2": wider}) >= divergence.of({"conv_2": found})


def test_scales_by_row_go_to_layers_that_gain_most_until_the_limit_holds(
    tokenizer: Tokenizer, texts: list[Indices]
) -> None:
    torch.manual_seed(5)
    blocks = (Block(layers=((2, 24), (1, 16)), repeat=4),)
    config = ModelConfig(vocabulary=tokenizer.size, embedding=16, blocks=blocks)
    model = GCNN(config, tokenizer.start_id).eval().stored()
    scales = quantize.calibrate(model, texts)
    divergence = Divergence(model, texts)

    def chosen(limit: float) -> tuple[set[str], float]:
        found = refine(model, scales, texts, limit)
        assert found.keys() == scales.keys()
        return {name for name, scale in found.items() if scale.by_row}, divergence.of(found)

    none, most = chosen(1.0)
    every, least = chosen(0.0)
    assert not none
    assert len(every) > 1
    assert least < most
    some, cost = chosen((most + least) / 2)
    assert cost <= (most + least) / 2
    assert set() < some < every
    fixed = refine(model, scales, texts, 1.0)
    rows = quantize.by_row(model, fixed)
    gains = {n: divergence.of({n: fixed[n]}) - divergence.of({n: rows[n]}) for n in every}
    assert min(gains[name] for name in some) >= max(gains[name] for name in every - some)


def test_texts_come_from_all_parts_of_the_list(
    stored: GCNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [np.full(50, n, np.int64) for n in range(100)]
    monkeypatch.setattr("model.export.divergence._TOKENS", 40 * 50)
    found = [int(ids[0, 0]) for ids in Divergence(stored, texts)._texts]
    assert len(found) == 40
    assert found[0] == 0
    assert found[-1] == 99
    assert {n % 2 for n in found} == {0, 1}
    monkeypatch.setattr("model.export.divergence._MULTIPLICATIONS", 1)  # as for a very large model
    assert len(Divergence(stored, texts)._texts) == math.ceil(512 / 50)
