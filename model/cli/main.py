"""The offline commands, which `app.cli.main` adds to its own.

Each command imports PyTorch and the other training packages when it runs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model.cli import corpus, evaluations
from model.cli.evaluations import load_tokenizer
from model.cli.options import CheckpointFile, TokenizerFile, TrainCorpus, errors_in_one_line, fail
from model.cli.report import report

if TYPE_CHECKING:
    from model.core.config import LSTMConfig, ModelConfig
    from model.data.corpus import Corpus
    from model.export.bundle_writer import Exported
    from model.training.recipe import RunConfig

offline = typer.Typer()
offline.add_typer(report, name="report")


@errors_in_one_line()
def describe(
    recipes: Annotated[list[Path], typer.Argument(help="Recipes, see model/recipes.")],
) -> None:
    """Print the models of recipes: layers, receptive field, parameters, cost and state."""
    from pydantic import TypeAdapter, ValidationError

    from model.core.config import AnyModelConfig, complaint
    from model.training.recipe import read_toml

    reader: TypeAdapter[ModelConfig | LSTMConfig] = TypeAdapter(AnyModelConfig)
    typer.echo(
        "| model | layers | receptive field | parameters | multiply-adds per token: trunk, softmax "
        "| state per stream |\n| --- | --- | --- | --- | --- | --- |"
    )
    for path in recipes:
        try:
            config = reader.validate_python(read_toml(path).get("model"))
        except ValidationError as error:
            fail(f"{path}: model: {complaint(error)}")
        typer.echo(_description(path.stem, config))


def _description(name: str, config: ModelConfig | LSTMConfig) -> str:
    """A row of the table."""
    from model.core.config import LSTMConfig

    softmax = config.head_width * config.head_columns
    if isinstance(config, LSTMConfig):
        layers, field = len(config.lstm), "all"
    else:
        layers, field = len(config.layers()), str(config.receptive_field)
    return (
        f"| {name} | {layers} | {field} "
        f"| {config.parameters() / 1e6:.1f} M | {config.trunk_macs() / 1e6:.1f} M, "
        f"{softmax / 1e6:.1f} M | {config.state_floats * 4 / 1024:.0f} KiB |"
    )


@errors_in_one_line()
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, see model/recipes.")],
    train: TrainCorpus,
    valid: Annotated[Path, typer.Option(help="A prepared corpus to choose the best weights by.")],
    out: Annotated[Path, typer.Option(help="The run's folder; a run in it is resumed.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")] = None,
    init: Annotated[
        Path | None,
        typer.Option(help="A checkpoint or bundle whose weights a new run begins with."),
    ] = None,
) -> None:
    """Train a model. Stop it with Ctrl-C; run the same command again to resume.

    On several GPUs: torchrun --nproc-per-node 4 -m app.cli train ...
    """
    from model.core.bundle import BundleError
    from model.training import restore
    from model.training.process import process_group
    from model.training.recipe import RunConfig
    from model.training.trainer import Trainer

    try:
        config = RunConfig.read(recipe)
        if steps is not None:
            budget = config.train.model_copy(update={"steps": steps})
            config = config.model_copy(update={"train": budget})
        corpora = _corpora(config, train, valid)
        initial = tokenizer = None
        if init is not None:
            initial, tokenizer = restore.load(init), restore.tokenizer_of(init)
        with process_group() as group:
            best = Trainer(config, *corpora, out, group, initial, tokenizer).run()
    except BundleError as error:
        fail(error)
    except KeyboardInterrupt:
        if not (out / "last.pt").exists():
            fail("stopped before there was a checkpoint")
        fail(f"stopped; {out} has a checkpoint: run the same command again to resume")
    typer.echo(f"{out}: best validation loss {best:.4f} nats per token")


def _corpora(config: RunConfig, train: Path, valid: Path) -> tuple[Corpus, Corpus]:
    """The corpora for a recipe. Raises FileNotFoundError, which names the source of the text."""
    from model.data.corpus import Corpus

    try:
        return Corpus(train), Corpus(valid)
    except FileNotFoundError as error:
        if config.data is None:
            raise
        about = f"the recipe is for {config.data.corpus}: {config.data.source}"
        raise FileNotFoundError(f"{error}; {about}") from None


@errors_in_one_line()
def export(
    checkpoint: CheckpointFile,
    tokenizer: TokenizerFile,
    out: Annotated[Path, typer.Option(help="The bundle's folder.")],
    name: Annotated[
        str | None, typer.Option(help="The model's name; the folder's by default.")
    ] = None,
    card: Annotated[Path | None, typer.Option(help="A model card, Markdown.")] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(help="A prepared corpus: write the model in 8 bits too, with scales from it."),
    ] = None,
    grid: Annotated[
        float | None,
        typer.Option(
            min=0.04,
            max=1.0,
            help="Store weights in bytes, as multiples of this part of their root mean square "
            "(0.2, say), not in float16: a smaller bundle that compresses better. The recipe's by "
            "default.",
        ),
    ] = None,
) -> None:
    """Write a bundle for `convlm serve` if it computes the same as the checkpoint."""
    from model.architecture.gcnn import GCNN
    from model.core.bundle import NAME, NAME_RULE
    from model.data.corpus import Corpus
    from model.data.text_files import read
    from model.export import bundle_writer
    from model.export.parity import ParityError
    from model.training.checkpoint import load_model

    name = name or out.name
    if not re.fullmatch(NAME, name):
        fail(f"--name: {name!r} has other characters than {NAME_RULE}")
    model, recipe, state = load_model(checkpoint)
    if not isinstance(model, GCNN):
        fail(f"{checkpoint} is not a convolutional model: only these are served")
    grid = recipe.train.grid if grid is None else grid
    text = None if card is None else read(card)
    calibration = None if calibrate is None else Corpus(calibrate)
    loaded = load_tokenizer(tokenizer, checkpoint, state)
    try:
        made = bundle_writer.export(model, loaded, out, name, text, calibration, grid)
    except ParityError as error:
        fail(error)
    typer.echo(f"{out}: written; differs from PyTorch by at most {made.worst:.1e} nats")
    _print_precisions(made)


def _print_precisions(made: Exported) -> None:
    """What the graphs of lower precision cost."""
    from model.export.bundle_writer import MAX_FLOAT16_RATIO
    from model.export.parity import HALF_TOLERANCE

    ratios = {"on the grid": made.grid_perplexity_ratio, "in 8 bits": made.int8_perplexity_ratio}
    for where, ratio in ratios.items():
        if ratio is not None:
            typer.echo(f"{where} the perplexity changes by {100 * (ratio - 1):+.3f} %")
    ratio = made.float16_perplexity_ratio
    if not made.float16_difference <= HALF_TOLERANCE:
        typer.echo(
            f"no graph in float16: it differs by {made.float16_difference:.1e} nats on average"
        )
    elif ratio is not None:
        outcome = "" if ratio <= MAX_FLOAT16_RATIO else ": no graph in float16"
        typer.echo(f"in float16 the perplexity changes by {100 * (ratio - 1):+.3f} %{outcome}")


for command in (
    describe,
    corpus.tokenizer,
    corpus.prepare,
    train,
    evaluations.evaluate,
    evaluations.wikitext,
    corpus.wikitext_prose,
    evaluations.ptb,
    evaluations.ngram_train,
    evaluations.ngram_evaluate,
    export,
):
    offline.command()(command)
