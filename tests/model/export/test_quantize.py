"""Scales of 8-bit products, and the graph that uses them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from model.architecture import rounding
from model.architecture.gcnn import GCNN
from model.core import bundle, byte_products
from model.core.graph import Indices
from model.core.tokenizer import Tokenizer
from model.data.corpus import Corpus, prepare
from model.evaluation.scoring import logprobs
from model.export import int8 as export_int8
from model.export import quantize
from model.export.bundle_writer import export
from model.export.parity import Graph


def test_a_scale_is_where_the_squares_are_least() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((200, 100)).astype(np.float32)
    values[0, :3] = 12.0  # outliers that are not worth coarser steps for all
    range_ = quantize._least_squares(values)

    def squares(r: float) -> float:
        step = r / 127
        return float(np.square(values - np.clip(np.rint(values / step), -128, 127) * step).sum())

    assert squares(range_) <= min(squares(r) for r in np.linspace(2.4, 12.0, 25))
    assert range_ < 12.0


def test_a_large_channel_among_many_is_seen_however_many_numbers_there_are() -> None:
    values = np.full((1 << 12, 256), 0.5, np.float32)
    values[:, 3] = 40.0
    assert quantize._least_squares(values) > 30


def test_inputs_of_zeros_have_a_scale() -> None:
    assert quantize._least_squares(np.zeros((5, 2), np.float32)) > 0
    assert torch.isfinite(1 / quantize.column_scales(torch.zeros(3, 4))).all()


def test_every_product_is_calibrated(adaptive_model: GCNN, calibration: Corpus) -> None:
    stored = adaptive_model.stored()
    ids = np.array(calibration.tokens[:50], np.int64)
    scales = quantize.calibrate(stored, [ids])
    assert set(scales) == set(quantize.products(stored))
    layers = len(stored.config.layers())
    tails = {f"tail_{index}_out" for index in range(3)}
    assert {f"conv_{n}" for n in range(layers)} | {"input", "head", "output"} | tails <= set(scales)
    assert all(scale.range > 0 for scale in scales.values())
    evened = {"output", "conv_2", "conv_3", *tails}  # behind another layer of their block
    assert {name for name, scale in scales.items() if scale.channels is not None} == evened


def test_scales_by_row_are_for_layers_of_one_token_behind_a_gate(
    adaptive_model: GCNN, adaptive: bundle.Bundle, calibration: Corpus
) -> None:
    stored = adaptive_model.stored()
    ids = np.array(calibration.tokens[:50], np.int64)
    scales = quantize.by_row(stored, quantize.calibrate(stored, [ids]))
    assert list(scales) == ["conv_3"]
    assert scales["conv_3"].by_row
    assert adaptive.graph_int8 is not None
    nodes = onnx.load(adaptive.graph_int8, load_external_data=False).graph.node
    # one for its rows, one for the likeliest token of the head
    assert [node.op_type for node in nodes].count("ReduceMax") == 2


def test_rounding_ends_with_the_block(tiny_model: GCNN, calibration: Corpus) -> None:
    stored = tiny_model.stored()
    ids = np.array(calibration.tokens[:50], np.int64)
    before = logprobs(stored, ids)
    with quantize.rounding_products(stored, quantize.calibrate(stored, [ids])):
        within = logprobs(stored, ids)
    assert np.abs(within - before).max() > 0
    np.testing.assert_array_equal(logprobs(stored, ids), before)
    assert stored.output.weight is stored.embedding.weight  # still tied


@pytest.mark.parametrize("name", ["tiny", "adaptive"])
def test_scores_in_8_bits_are_near_those_in_float32(
    name: str, request: pytest.FixtureRequest, calibration: Corpus
) -> None:
    made: bundle.Bundle = request.getfixturevalue(name)
    path = byte_products.graph_int8(made)
    assert path is not None
    exact = Graph(made.graph, made.config.model, "float32")
    eight = Graph(path, made.config.model, "int8")
    ids = np.array(calibration.tokens[:200], np.int64)
    one, other = exact.run(ids), eight.run(ids)
    off = np.abs(one[0] - other[0]).mean()
    assert 0 < off < 0.05 * np.abs(one[0]).mean()
    assert np.exp(other[1]).sum() == pytest.approx(1, abs=1e-5)
    assert made.config.int8_perplexity_ratio is not None


@pytest.mark.parametrize("grid", [None, 0.2])
def test_each_large_weight_is_stored_once(
    tokenizer: Tokenizer, calibration: Corpus, tmp_path: Path, grid: float | None
) -> None:
    from model.core.config import Block, HashedNgrams, ModelConfig

    config = ModelConfig(
        vocabulary=tokenizer.size,
        embedding=64,
        blocks=(Block(layers=((2, 64),), repeat=2),),
        ngrams=(HashedNgrams(order=2, rows=5000, channels=4),),
    )
    model = GCNN(config, tokenizer.start_id).eval()
    export(model, tokenizer, tmp_path / "b", "b", calibration=calibration, grid=grid)
    made = bundle.load(tmp_path / "b")
    stored = {}
    for path in (made.graph, made.graph_int8, made.graph_int8_unsigned, made.graph_float16):
        assert path is not None
        tensors = onnx.load(path, load_external_data=False).graph.initializer
        stored[path] = {
            t.name: {e.key: e.value for e in t.external_data}
            for t in tensors
            if t.data_location == TensorProto.EXTERNAL
        }
    assert made.graph_int8 is not None
    nodes = onnx.load(made.graph_int8, load_external_data=False).graph.node
    read = {name: node.op_type for node in nodes for name in node.input if name == "conv_0"}
    assert read == {"conv_0": "Cast" if grid is None else "Slice"}  # bytes as they are
    assert all(others == stored[made.graph] for others in stored.values())
    assert {"embedding", "conv_0", "conv_1", "output"} <= set(stored[made.graph])
    assert (made.folder / bundle.NGRAMS).stat().st_size == 5000 * 4  # alone in its file
    assert stored[made.graph]["ngram_0_table"]["location"] == bundle.NGRAMS
    weights = (made.folder / bundle.WEIGHTS).stat().st_size
    each = 2 if grid is None else 1
    assert weights < each * config.parameters() + 4096 * len(stored[made.graph])


def test_a_weight_on_a_grid_loses_nothing_in_8_bits() -> None:
    weight = rounding.on_grid(torch.randn(40, 70, generator=torch.Generator().manual_seed(0)), 0.2)
    steps = quantize.column_scales(weight)[:, None]
    torch.testing.assert_close((weight / steps).round() * steps, weight, rtol=0, atol=0)


def test_one_document_is_not_enough_to_calibrate_on(
    tiny_model: GCNN, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    prepare(["One document."], tokenizer, tmp_path / "one")
    with pytest.raises(ValueError, match="at least two documents"):
        export(tiny_model, tokenizer, tmp_path / "b", "b", calibration=Corpus(tmp_path / "one"))
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("ratios", "written"),
    [
        ([1.001], ["some"]),
        ([1.004, 1.001], ["some", "all"]),
        ([1.004, 1.003], ["some", "all"]),
        ([1.004, 1.005], ["some", "all", "some"]),
    ],
)
def test_all_layers_get_scales_by_row_where_some_do_not_do(
    adaptive_model: GCNN,
    calibration: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ratios: list[float],
    written: list[str],
) -> None:
    found: list[str] = []

    def write(
        folder: Path, model: GCNN, scales: quantize.Scales, unseen: list[Indices]
    ) -> tuple[None, float]:
        found.append("all" if scales["conv_3"].by_row else "some")
        return None, ratios[min(len(found), len(ratios)) - 1] if found[-1] == "all" else ratios[0]

    monkeypatch.setattr(export_int8, "_written", write)
    monkeypatch.setattr(export_int8, "_WANTED_DIVERGENCE", 1.0)
    _, ratio = export_int8.write(tmp_path, adaptive_model.stored(), [], calibration)
    assert found == written
    assert ratio == min(ratios)
