"""The reports: matched sizes, runs that are not repeated, and both models given the same work."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from typer.testing import CliRunner

from model.architecture.clip import clamp
from model.architecture.frames import side_by_side
from model.architecture.gcnn import GCNN
from model.architecture.lstm import LSTM
from model.cli.main import offline
from model.core.config import Block, Layer, LSTMConfig, ModelConfig
from model.core.gates import GATES, GateName
from model.core.tokenizer import Tokenizer
from model.data.corpus import Corpus, prepare
from model.evaluation.scoring import logprobs
from model.report import gates, plots, speed, training
from model.report.scorers import GCNNScorer
from model.report.sizes import TOLERANCE, lstm_like, with_gate
from model.training.recipe import RunConfig, TrainConfig
from tests import texts
from tests.conftest import TINY_BLOCKS

GATES_RECIPE = Path("model/recipes/gates.toml")
TINY_PLAN = speed.Plan(
    texts=4,
    text_tokens=12,
    long_tokens=60,
    lengths=(16, 64),
    rows=(16, 32),
    side_by_side=(2, 4),
    rounds=2,
)


@pytest.fixture(scope="module")
def corpus(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    prepare(iter(texts.ALL), tokenizer, folder)
    return folder


@pytest.fixture
def recipe(tokenizer: Tokenizer) -> RunConfig:
    return RunConfig(
        model=ModelConfig(
            vocabulary=tokenizer.size,
            embedding=16,
            input_channels=32,
            head_channels=16,
            blocks=(Block(layers=((3, 32),), repeat=2),),
        ),
        train=TrainConfig(steps=4, batch_rows=2, row_tokens=16, validate_every=2),
    )


def written(recipe: RunConfig, path: Path) -> Path:
    """The recipe as a file."""
    lines = []
    for section, fields in json.loads(recipe.model_dump_json(exclude_defaults=True)).items():
        blocks = fields.pop("blocks", None)
        lines += [f"[{section}]", *(f"{k} = {json.dumps(v)}" for k, v in fields.items())]
        if blocks:
            layers = [f"{{ layers = {b['layers']}, repeat = {b['repeat']} }}" for b in blocks]
            lines.append(f"blocks = [{', '.join(layers)}]")
    path.write_text("\n".join(lines))
    return path


def difference(one: ModelConfig | LSTMConfig, other: ModelConfig | LSTMConfig) -> float:
    """The difference in parameters, as a share of the first model's."""
    return abs(other.parameters() / one.parameters() - 1)


@pytest.mark.parametrize("gate", GATES)
def test_every_gate_has_the_same_parameters(gate: GateName) -> None:
    config = RunConfig.read(GATES_RECIPE).model
    assert isinstance(config, ModelConfig)
    other = with_gate(config, gate)
    assert other.gate == gate
    assert other.receptive_field == config.receptive_field
    assert other.head_width == config.head_width
    assert difference(config, other) < 0.005
    built = sum(p.numel() for p in GCNN(other, 0).parameters())
    assert built == other.parameters()


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", ["gcnn-8b", "gates"])
def test_the_lstm_has_the_convolutions_size(name: str, layers: int) -> None:
    config = RunConfig.read(Path(f"model/recipes/{name}.toml")).model
    assert isinstance(config, ModelConfig)
    other = lstm_like(config, layers)
    assert len(other.lstm) == layers
    assert difference(config, other) < TOLERANCE
    assert sum(p.numel() for p in LSTM(other, 0).parameters()) == other.parameters()


def test_tied_weights_need_a_head_for_trunks_of_other_widths() -> None:
    blocks = (Block(layers=((2, 8),), repeat=2),)
    config = ModelConfig(vocabulary=50, embedding=8, tied=True, blocks=blocks)
    with pytest.raises(ValueError, match="head_channels"):
        with_gate(config, "relu")


def test_a_size_that_no_width_has_is_refused() -> None:
    config = ModelConfig(vocabulary=8, embedding=1, blocks=(Block(layers=((2, 1),)),))
    with pytest.raises(ValueError, match="no width gives"):
        lstm_like(config, layers=9)


@pytest.mark.parametrize("kernel", [2, 3, 4, 5])
def test_so_many_layers_see_the_context_and_no_fewer(kernel: int) -> None:
    for context in range(2, 60):
        layers = speed.sequential_steps(context, kernel)
        block = Block(layers=((kernel, 4),), repeat=layers)
        deep = ModelConfig(vocabulary=8, embedding=4, blocks=(block,))
        assert deep.receptive_field >= context > deep.receptive_field - (kernel - 1)


def test_the_steps_table_has_a_row_for_every_context() -> None:
    table = speed.steps_table(contexts=(5, 20), kernels=(2, 4)).split("\n")
    assert table[2:] == ["| 5 | 5 | 4 | 2 |", "| 20 | 20 | 19 | 7 |"]
    with pytest.raises(ValueError, match="sees no earlier token"):
        speed.sequential_steps(20, 1)


def test_finished_runs_are_not_trained_again(
    recipe: RunConfig, corpus: Path, tmp_path: Path
) -> None:
    data = Corpus(corpus)

    def comparison(rates: tuple[float, ...] = (1e-3, 1e-2)) -> gates.Comparison:
        chosen: tuple[GateName, ...] = ("glu", "tanh")
        return gates.Comparison(recipe, tmp_path, gates=chosen, rates=rates, seeds=(0, 1))

    first = comparison()
    assert first.train(data, data) == 6  # for each gate two rates, then one more seed
    again = comparison()
    assert again.train(data, data) == 0
    assert again.runs == first.runs
    assert comparison((1e-3,)).train(data, data) <= 2  # the seed whose rate was not the best
    for gate in again.gates:
        runs = again.finished(gate)
        assert [run.recipe.train.seed for run in runs] == [0, 1]
        losses = again.losses_of_rates(gate)
        assert again.best_rate(gate) == min(losses, key=lambda rate: losses[rate])
        for run in runs:
            assert [point.step for point in run.points] == [2, 4]
            assert 0 < run.points[0].cpu_seconds < run.points[1].cpu_seconds
            assert 0 < run.loss < 2 * math.log(data.vocabulary)
    text = gates.report(again)
    assert "| tanh | " in text
    assert "4 updates of 2 rows of 16 tokens (128 tokens)" in text
    plots.gates({gate: again.finished(gate) for gate in again.gates}, tmp_path / "g.png")
    assert (tmp_path / "g.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_diverges_is_the_worst_and_not_the_end(
    recipe: RunConfig, corpus: Path, tmp_path: Path
) -> None:
    data = Corpus(corpus)
    plain = recipe.model.model_copy(update={"weight_norm": False})
    wild = recipe.model_copy(update={"model": plain})
    found = gates.Comparison(wild, tmp_path, gates=("bilinear",), rates=(1e30, 1e-3), seeds=(0,))
    found.train(data, data)
    assert found.losses_of_rates("bilinear")[1e30] == math.inf
    assert found.best_rate("bilinear") == 1e-3
    assert "inf" in gates.rates_table(found)


def test_the_gates_command_compares_and_goes_on(
    recipe: RunConfig, corpus: Path, tmp_path: Path
) -> None:
    path = written(recipe, tmp_path / "r.toml")
    out = tmp_path / "out"
    options = ["--train", corpus, "--valid", corpus, "--out", out, "--recipe", path, "--seeds", 1]
    arguments = ["report", "gates", *map(str, options), "--gate", "relu", "--gate", "glu"]
    for _ in range(2):
        done = CliRunner().invoke(offline, arguments)
        assert done.exit_code == 0, done.output
    assert len((out / gates.RESULTS).read_text().splitlines()) == 2
    assert "| relu | " in (out / "gates.md").read_text()
    wrong = CliRunner().invoke(offline, [*arguments, "--gate", "swish"])
    assert wrong.exit_code == 1
    assert "there is no gate swish" in wrong.output


@pytest.mark.parametrize("rows", [1, 5, 16, 1000])
@pytest.mark.parametrize("kind", ["tiny_model", "adaptive_model"])
def test_the_convolutions_score_a_text_in_pieces_as_pytorch_does_whole(
    kind: str, rows: int, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    assert isinstance(model, GCNN)
    scorer = GCNNScorer(model, threads=1)
    exact = model.stored()
    text = np.random.default_rng(5).integers(2, model.config.vocabulary, 60)
    text[0] = model.start_id
    found = scorer.one(text[:-1], text[1:], rows)
    np.testing.assert_allclose(found, logprobs(exact, text), rtol=0, atol=1e-4)
    several = np.stack([text[:20], np.roll(text[1:], 7)[:20], text[20:40]])
    several[:, 0] = model.start_id
    side = scorer.many(several[:, :-1], several[:, 1:], 2, rows)
    expected = np.stack([logprobs(exact, row) for row in several])
    np.testing.assert_allclose(side, expected, rtol=0, atol=1e-4)


def test_speed_is_measured_in_positive_numbers(tmp_path: Path) -> None:
    config = ModelConfig(
        vocabulary=400, embedding=24, input_channels=24, head_channels=24, blocks=TINY_BLOCKS
    )
    timings = speed.measure(config, "tiny", TINY_PLAN)
    assert difference(config, lstm_like(config)) < TOLERANCE
    assert len(timings.many) >= 4
    assert len(timings.one) == 4
    for rates in (timings.many, timings.one):
        assert all(len(values) == 2 and min(values) > 0 for values in rates.values())
        assert len(speed.ratios(rates)) == 2
    assert {name: list(v) for name, v in timings.lengths.items()} == {
        "GCNN": [16, 64],
        "LSTM": [16, 64],
    }
    speed.save(timings, tmp_path)
    assert json.loads((tmp_path / speed.RESULTS).read_text())["plan"]["rounds"] == 2
    text = speed.report(timings)
    for heading in ("Throughput and responsiveness", "Operations in sequence"):
        assert f"## {heading}\n" in text
    plots.lengths(timings.lengths, tmp_path / "s.png")
    assert (tmp_path / "s.png").stat().st_size < 150_000


def test_the_best_variant_is_the_one_with_the_highest_median() -> None:
    rates = {"GCNN, a": [1.0, 9.0, 1.0], "GCNN, b": [2.0, 2.0, 2.0], "LSTM, a": [1.0, 2.0, 4.0]}
    assert speed.best("GCNN", rates) == "GCNN, b"
    assert speed.ratios(rates) == [2.0, 1.0, 0.5]


def test_the_speed_command_refuses_an_lstms_recipe(tmp_path: Path) -> None:
    model = LSTMConfig(vocabulary=300, embedding=8, lstm=(8,))
    path = written(RunConfig(model=model, train=TrainConfig(steps=1)), tmp_path / "r.toml")
    done = CliRunner().invoke(
        offline, ["report", "speed", "--out", str(tmp_path), "--recipe", str(path)]
    )
    assert done.exit_code == 1
    assert "not a recipe of a convolutional model" in done.output


def test_without_matplotlib_a_figure_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match="extra `report`"):
        plots.lengths({"GCNN": {16: [1.0]}}, tmp_path / "x.png")


def test_operators_count_for_what_they_are_within() -> None:
    x = torch.randn(4, 64, 32, requires_grad=True)
    places = torch.arange(64).expand(4, 64)
    layer = Layer(kernel=2, inputs=32, outputs=1, dilation=1)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        side_by_side(x, layer, places).sum().backward()  # masks are products
        (x @ torch.randn(32, 8)).sigmoid()
        clamp(x, 0.1)
    shares = training.by_kind(profiled)
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    for kind in ("matrix products", "copies and joins of frames", "bounds", "gates"):
        assert shares[kind] > 0, kind
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        side_by_side(x, layer, places)
    assert training.by_kind(profiled)["gates"] == 0
