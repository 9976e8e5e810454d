"""The commands `convlm report gates`, `speed` and `training`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from model.cli.options import TrainCorpus, errors_in_one_line, fail

if TYPE_CHECKING:
    from model.report.speed import Timings

report = typer.Typer(help="Measure the paper's claims about gates and speed.")

RECIPES = Path(__file__).parents[1] / "recipes"
Out = Annotated[Path, typer.Option(help="The folder for results, tables and figures.")]
ClockOption = Annotated[
    Literal["wall", "cpu"],
    typer.Option(help="`cpu`, with one thread, on a machine that runs other programs too."),
]


@report.command()
@errors_in_one_line()
def gates(
    train: TrainCorpus,
    valid: Annotated[Path, typer.Option(help="A prepared corpus to compare on.")],
    out: Out,
    recipe: Annotated[
        Path, typer.Option(help="The model with one of the gates, the optimiser and the budget.")
    ] = RECIPES / "gates.toml",
    gate: Annotated[
        list[str] | None, typer.Option(help="A gate to compare, once for each; all if unset.")
    ] = None,
    rate: Annotated[
        list[float] | None,
        typer.Option(help="A learning rate to try, once for each; the recipe's if unset."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each gate at its best rate.")] = 3,
    only_tables: Annotated[
        bool, typer.Option("--only-tables", help="Train nothing; show the results so far.")
    ] = False,
) -> None:
    """Train the same model with each gate and compare the validation perplexities.

    Parameters and updates are the same for all. Stop it with Ctrl-C; run the same command again to
    make the missing runs. See docs/howto/report.md.
    """
    from model.core.outputs import naming
    from model.data.corpus import Corpus
    from model.report import gates as comparison
    from model.report import plots
    from model.training.recipe import RunConfig

    chosen = comparison.gates_named(gate or ())
    try:
        runs = comparison.Comparison(
            RunConfig.read(recipe), out, gates=chosen, rates=rate or (), seeds=range(seeds)
        )
        typer.echo(comparison.sizes_table(runs))
        if not only_tables:
            runs.train(Corpus(train), Corpus(valid))
    except KeyboardInterrupt:
        fail(f"stopped; {out} has the finished runs: run the same command again to make the rest")
    text = comparison.report(runs)
    with naming(out / "gates.md"):
        (out / "gates.md").write_text(text)
    typer.echo(text)
    plots.gates({name: runs.finished(name) for name in chosen}, out / "gates.png")


@report.command()
@errors_in_one_line()
def speed(
    out: Out,
    recipe: Annotated[
        Path, typer.Option(help="The convolutional model; the LSTM gets its size.")
    ] = RECIPES / "prose-18m.toml",
    layers: Annotated[int, typer.Option(min=1, help="Layers of the LSTM.")] = 1,
    threads: Annotated[int, typer.Option(min=0, help="ONNX Runtime's; 0: one for each core.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of all variants in turn.")] = 5,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where to compute.")] = "cpu",
    clock: ClockOption = "wall",
    texts: Annotated[int, typer.Option(min=1, help="Texts for the throughput.")] = 256,
    text_tokens: Annotated[int, typer.Option(min=1, help="Their length.")] = 32,
    long_tokens: Annotated[int, typer.Option(min=1, help="The one long text's length.")] = 15_000,
    longest: Annotated[int, typer.Option(min=16, help="The longest text of the curve.")] = 16_384,
) -> None:
    """Time the convolutional model and an LSTM of its size on the same ONNX Runtime.

    Weights are random: speed does not depend on them. Run it on a machine that does nothing else,
    or with one thread and --clock cpu. See docs/howto/report.md.
    """
    from model.core.config import ModelConfig
    from model.report import speed as timing
    from model.training.recipe import RunConfig

    config = RunConfig.read(recipe).model
    if not isinstance(config, ModelConfig):
        fail(f"{recipe} is not a recipe of a convolutional model")
    plan = timing.Plan(
        texts=texts,
        text_tokens=text_tokens,
        long_tokens=long_tokens,
        lengths=tuple(n for n in timing.LENGTHS if n <= longest),
        rounds=rounds,
        threads=threads,
        device=device,
        clock=clock,
    )
    _write_speed(timing.measure(config, recipe.stem, plan, layers), out)


def _write_speed(timings: Timings, out: Path) -> None:
    from model.core.outputs import naming
    from model.report import plots, speed

    text = speed.report(timings)
    with naming(out / "speed.md"):
        speed.save(timings, out)
        (out / "speed.md").write_text(text)
    typer.echo(text)
    plots.lengths(timings.lengths, out / "speed.png")


@report.command()
@errors_in_one_line()
def training(
    train: TrainCorpus,
    recipe: Annotated[Path, typer.Option(help="The model and its optimiser.")] = RECIPES
    / "prose-18m-2.toml",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the median counts.")] = 5,
    updates: Annotated[int, typer.Option(min=1, help="Updates in a round.")] = 4,
    clock: ClockOption = "wall",
) -> None:
    """Compare the speed of training with that of matrix products, and show where the time goes.

    Nothing is written. OMP_NUM_THREADS sets the threads. See docs/howto/report.md.
    """
    from model.core.processor import machine
    from model.data.corpus import Corpus
    from model.report import training as timing
    from model.training.recipe import RunConfig

    measured = timing.measure(RunConfig.read(recipe), Corpus(train), updates, rounds, clock)
    typer.echo(f"{machine()}\n\n{timing.table(measured)}")
