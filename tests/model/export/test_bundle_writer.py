"""The flat graph computes what PyTorch does; a bundle is whole, verified, or not there."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnxscript import ir
from tokenizers import Tokenizer as Backend
from typer.testing import CliRunner

from model.architecture import rounding
from model.architecture.gcnn import GCNN
from model.cli.main import offline
from model.core import bundle, graph
from model.core.addresses import NONE, Pieces, addresses
from model.core.bundle import BundleError
from model.core.config import ModelConfig
from model.core.flat_batch import whole_text
from model.core.gates import GATES, GateName
from model.core.graph import Floats, Indices
from model.core.tokenizer import Tokenizer
from model.data.corpus import Corpus
from model.export import bundle_writer as export
from model.export import parity
from model.export.flat import FlatGraph
from model.export.parity import Graph, ParityError
from model.export.weights import Weights
from model.training import restore
from tests.conftest import TINY_BLOCKS
from tests.engine.test_exactness import ids


@pytest.mark.parametrize("gate", list(GATES))
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("weight_norm", [True, False])
def test_the_graph_equals_pytorch(
    gate: GateName, tied: bool, weight_norm: bool, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        vocabulary=tokenizer.size,
        embedding=24,
        input_channels=32,
        head_channels=24 if tied else None,
        blocks=TINY_BLOCKS,
        gate=gate,
        tied=tied,
        weight_norm=weight_norm,
    )
    model = GCNN(config, tokenizer.start_id).eval()
    made = export.export(model, tokenizer, tmp_path / "bundle", "b")
    assert made.worst < 1e-5


def test_neighbouring_projections_keep_their_own_weights(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config = ModelConfig.model_validate(
        {
            "vocabulary": tokenizer.size,
            "embedding": 8,
            "blocks": [{"layers": [[1, 12]]}, {"layers": [[1, 8]]}, {"layers": [[1, 12]]}],
        }
    )
    made = export.export(GCNN(config, 0).eval(), tokenizer, tmp_path / "bundle", "b")
    assert made.worst < 1e-5


def test_a_model_of_single_token_kernels_exports(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = ModelConfig.model_validate(
        {"vocabulary": tokenizer.size, "embedding": 8, "blocks": [{"layers": [[1, 8]]}]}
    )
    export.export(GCNN(config, 0).eval(), tokenizer, tmp_path / "bundle", "b")
    assert bundle.load(tmp_path / "bundle").config.model.receptive_field == 1


def test_a_graph_that_differs_is_not_written(
    tiny_model: GCNN, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = FlatGraph._gated

    def wrong(self: FlatGraph, *inputs: object) -> object:
        return self._scaled(right(self, *inputs))  # type: ignore[arg-type]

    monkeypatch.setattr(FlatGraph, "_gated", wrong)
    with pytest.raises(ParityError, match="no bundle was written"):
        export.export(tiny_model, tokenizer, tmp_path / "bundle", "b")
    assert list(tmp_path.iterdir()) == []


def test_a_float16_graph_that_differs_is_left_out(
    tiny_model: GCNN, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Weights.vector

    def wrong(self: Weights, name: str, value: torch.Tensor) -> object:
        return right(self, name, 2 * value if self.dtype == ir.DataType.FLOAT16 else value)

    assert export.export(tiny_model, tokenizer, tmp_path / "right", "b").float16_difference < 0.02
    assert bundle.load(tmp_path / "right").graph_float16 is not None
    monkeypatch.setattr(Weights, "vector", wrong)
    assert (
        not export.export(tiny_model, tokenizer, tmp_path / "wrong", "b").float16_difference < 0.02
    )
    assert bundle.load(tmp_path / "wrong").graph_float16 is None


@pytest.mark.parametrize("ratio", [1.003, math.nan])
def test_a_float16_graph_that_costs_perplexity_is_left_out(
    tiny_model: GCNN,
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    calibration: Corpus,
    ratio: float,
) -> None:
    export_with = partial(export.export, tiny_model, tokenizer, calibration=calibration)
    made = export_with(tmp_path / "right", "b")
    right = bundle.load(tmp_path / "right")
    assert right.graph_float16 is not None
    assert right.config.float16_perplexity_ratio == made.float16_perplexity_ratio
    assert abs(1 - (made.float16_perplexity_ratio or 0)) < 0.02
    monkeypatch.setattr(parity, "perplexity_ratio", lambda *_: ratio)
    made = export_with(tmp_path / "wrong", "b")
    assert made.float16_perplexity_ratio is ratio
    wrong = bundle.load(tmp_path / "wrong")
    assert wrong.graph_float16 is None
    assert wrong.config.float16_perplexity_ratio is None


def test_scores_that_are_no_numbers_are_not_taken_for_equal(
    tiny_model: GCNN, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Graph.run

    def wrong(self: Graph, ids: Indices) -> tuple[Floats, Floats]:
        found, following = right(self, ids)
        found[-1] = np.nan
        return found, following

    monkeypatch.setattr(Graph, "run", wrong)
    with pytest.raises(ParityError, match="nan nats"):
        export.export(tiny_model, tokenizer, tmp_path / "bundle", "b")


def test_a_folder_that_is_no_bundle_is_not_replaced(
    tiny_model: GCNN, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        export.export(tiny_model, tokenizer, tmp_path, "b")
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_bundle_replaces_a_bundle(tiny_model: GCNN, tokenizer: Tokenizer, tmp_path: Path) -> None:
    for name in ("one", "two"):
        export.export(tiny_model, tokenizer, tmp_path / "bundle", name)
    assert bundle.load(tmp_path / "bundle").config.name == "two"


@pytest.fixture
def copied(tiny_folder: Path, tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in tiny_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_missing_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle at"):
        bundle.load(tmp_path / "nothing")


@pytest.mark.parametrize("name", [bundle.GRAPH, bundle.CONFIG, bundle.TOKENIZER, bundle.GOLDEN])
def test_a_changed_file_is_named(copied: Path, name: str) -> None:
    raw = bytearray((copied / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (copied / name).write_bytes(raw)
    with pytest.raises(BundleError, match=rf"checksum of {name}"):
        bundle.load(copied)


@pytest.mark.parametrize("name", [bundle.GRAPH, bundle.CONFIG])
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(BundleError, match=rf"{name} is missing"):
        bundle.load(copied)


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", "\x00"])
def test_broken_checksums_are_a_corrupt_bundle(copied: Path, content: str) -> None:
    (copied / bundle.CHECKSUMS).write_text(content)
    with pytest.raises(BundleError, match="corrupt"):
        bundle.load(copied)


def test_a_bundle_of_another_format_is_incompatible(copied: Path) -> None:
    facts = json.loads((copied / bundle.CONFIG).read_text()) | {"format": 99}
    (copied / bundle.CONFIG).write_text(json.dumps(facts))
    sums = json.loads((copied / bundle.CHECKSUMS).read_text())
    sums[bundle.CONFIG] = bundle._digest(copied / bundle.CONFIG)
    (copied / bundle.CHECKSUMS).write_text(json.dumps(sums))
    with pytest.raises(BundleError, match="format is 99"):
        bundle.load(copied)


def test_other_tools_find_the_special_symbols(tiny_folder: Path, tokenizer: Tokenizer) -> None:
    facts = json.loads((tiny_folder / bundle.TOKENIZER_CONFIG).read_text())
    assert (facts["bos_token"], facts["eos_token"]) == ("<s>", "</s>")
    backend = Backend.from_file(str(tiny_folder / bundle.TOKENIZER))
    own = tokenizer.encode("Alice was").ids.tolist()
    assert backend.encode("Alice was").ids == [tokenizer.start_id, *own]
    assert Tokenizer.load(tiny_folder / bundle.TOKENIZER).encode("Alice was").ids.tolist() == own


def test_a_bundle_without_a_tokenizer_configuration_loads(copied: Path) -> None:
    (copied / bundle.TOKENIZER_CONFIG).unlink()
    sums = json.loads((copied / bundle.CHECKSUMS).read_text())
    del sums[bundle.TOKENIZER_CONFIG]
    (copied / bundle.CHECKSUMS).write_text(json.dumps(sums))
    assert bundle.load(copied).config.name == "tiny"


def test_any_changed_byte_changes_the_fingerprint(
    tiny: bundle.Bundle, tiny_model: GCNN, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    export.export(tiny_model, tokenizer, tmp_path / "b", "tiny", "another card")
    assert bundle.load(tmp_path / "b").fingerprint != tiny.fingerprint


def test_a_state_carries_on_where_a_batch_ended(tiny: bundle.Bundle) -> None:
    """The graph alone, without planner or session: two batches with a state equal one text."""
    config = tiny.config.model
    session = ort.InferenceSession(tiny.graph, providers=["CPUExecutionProvider"])
    text = ids([int(t) for t in np.random.default_rng(1).integers(2, 400, 39)])
    pools = graph.empty_pools(config, slots=2, precision="float32")
    names = [graph.new_pool_name(name) for name in graph.pools(config, "float32")]

    def part(
        begin: int, end: int, read: int, write: int
    ) -> dict[str, graph.Indices | graph.Floats]:
        piece = Pieces(*(np.array([number]) for number in (end - begin, begin, read, write)))
        batch = whole_text(text[begin:end], config.taps)
        return replace(batch, addresses=addresses(piece, config.taps)).feeds(config)

    kept = session.run(names, part(0, 25, NONE, 1) | pools)
    two = part(25, 40, 1, NONE) | dict(zip(pools, kept, strict=True))
    (found,) = session.run([graph.LOGPROBS], two)
    whole = whole_text(text, config.taps).feeds(config) | pools
    (expected,) = session.run([graph.LOGPROBS], whole)
    np.testing.assert_array_equal(found, expected[25:])


@pytest.mark.parametrize("name", ["tiny", "adaptive"])
def test_the_weights_in_a_bundle_are_the_models(name: str, request: pytest.FixtureRequest) -> None:
    stored: bundle.Bundle = request.getfixturevalue(name)
    model: GCNN = request.getfixturevalue(f"{name}_model")
    expected = model.stored().state_dict()
    for key, value in restore.load(stored.folder).state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["tiny", "adaptive"])
def test_weights_in_bytes_score_as_the_model_that_was_rounded(
    name: str,
    tokenizer: Tokenizer,
    calibration: Corpus,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    model: GCNN = request.getfixturevalue(f"{name}_model")
    made = export.export(model, tokenizer, tmp_path / "x", "x", None, calibration, grid=0.1)
    assert made.worst < 1e-4
    assert 0.5 < (made.grid_perplexity_ratio or 0) < 2
    stored = bundle.load(tmp_path / "x")
    assert stored.config.weights == "int8"
    assert stored.graph_int8 is not None
    assert stored.graph_float16 is not None
    found = restore.from_bundle(stored).state_dict()
    expected = model.stored(0.1).state_dict()
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=0)
    kinds = {
        tensor.name: tensor.data_type
        for tensor in onnx.load(stored.graph, load_external_data=False).graph.initializer
    }
    weights = [n for n in kinds if n.startswith("conv_") and not n.endswith(("bias", "scales"))]
    assert weights
    assert all(kinds[n] == onnx.TensorProto.INT8 for n in ("embedding", *weights))


@pytest.mark.parametrize("grid", [0.1, 1.0])
def test_a_tied_embedding_is_put_on_the_grid_once(tiny_model: GCNN, grid: float) -> None:
    own = tiny_model.folded().embedding.weight
    found = tiny_model.stored(grid).embedding.weight
    torch.testing.assert_close(found, rounding.on_grid(own, grid), rtol=0, atol=0)


def test_weights_in_bytes_are_made_numbers_at_load(
    adaptive_model: GCNN, tokenizer: Tokenizer, calibration: Corpus, tmp_path: Path
) -> None:
    export.export(adaptive_model, tokenizer, tmp_path / "x", "x", None, calibration, grid=0.1)
    made = bundle.load(tmp_path / "x")
    for path in (made.graph, made.graph_float16, made.graph_int8, made.graph_int8_unsigned):
        assert path is not None
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"{path.stem}.optimized.onnx")
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        made_of = onnx.load(options.optimized_model_filepath, load_external_data=False)
        graph_run = made_of.graph
        known = {tensor.name for tensor in graph_run.initializer}
        left = [n.op_type for n in graph_run.node if n.input and set(n.input) <= known | {""}]
        if path == made.graph_float16:  # a processor without float16 casts all that it reads
            left = [name for name in left if name != "Cast"]
        assert not {"Mul", "Cast", "Slice", "QuantizeLinear"} & set(left), path


@pytest.mark.parametrize("weight_norm", [True, False])
def test_a_model_begins_with_the_weights_of_another(
    adaptive: bundle.Bundle, weight_norm: bool
) -> None:
    source = restore.load(adaptive.folder)
    config = source.config.model_copy(update={"weight_norm": weight_norm})
    target = GCNN(config, source.start_id).eval()
    restore.copy(source, target)
    tokens = torch.arange(2, 42)[None]
    torch.testing.assert_close(target(tokens), source(tokens), rtol=0, atol=1e-4)
    other = GCNN(config.model_copy(update={"gate": "gtu"}), source.start_id)
    with pytest.raises(ValueError, match="not the recipe's"):
        restore.copy(source, other)


def test_a_name_that_no_model_may_have_is_refused_before_the_work(tmp_path: Path) -> None:
    command = ["export", "none.pt", "--tokenizer", "none.json", "--out", str(tmp_path / "a b")]
    refused = CliRunner().invoke(offline, command)
    assert refused.exit_code == 1
    assert refused.output.startswith("convlm: --name: 'a b' has other characters")
