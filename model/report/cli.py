"""The commands `convlm report gates`, `speed` and `training`. Mounted by `model.cli.main`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from model.core.outputs import naming

report = typer.Typer(help="Measure what the paper claims: the gates, and the speed.")

RECIPES = Path(__file__).parents[1] / "recipes"
MISSING = "this command needs the training packages, PyTorch among them; `make dev` installs them"
Out = Annotated[Path, typer.Option(help="The folder for results, tables and figures.")]


class DeviceName(StrEnum):
    """Where ONNX Runtime computes."""

    cpu = "cpu"
    cuda = "cuda"


class ClockName(StrEnum):
    """What is measured: time, or the process's share of the processor."""

    wall = "wall"
    cpu = "cpu"


def fail(error: Exception | str) -> NoReturn:
    """Ends a command with one line that says why."""
    if isinstance(error, OSError) and error.filename is not None:
        error = f"{error.filename}: {error.strerror}"
    typer.echo(f"convlm: {' '.join(str(error).split())}", err=True)
    raise typer.Exit(1)


@report.command()
def gates(
    train: Annotated[Path, typer.Option("--train", help="A prepared corpus to learn from.")],
    valid: Annotated[Path, typer.Option(help="A prepared corpus to compare on.")],
    out: Out,
    recipe: Annotated[
        Path, typer.Option(help="The model of one gate, optimiser and budget.")
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
        bool, typer.Option("--only-tables", help="Train nothing; show what there is.")
    ] = False,
) -> None:
    """Train the same model with each gate and compare the validation perplexities.

    Parameters and updates are the same for all. Stop it with Ctrl-C; the same command goes on with
    the runs that are missing. See docs/howto/report.md.
    """
    try:
        from model.data.corpus import Corpus
        from model.report import gates as comparison
        from model.report import gates_tables, plots
        from model.training.recipe import RunConfig
    except ImportError:
        fail(MISSING)
    try:
        chosen = comparison.named(gate) if gate else comparison.GATES
        runs = comparison.Comparison(
            RunConfig.read(recipe), out, gates=chosen, rates=rate or (), seeds=range(seeds)
        )
        typer.echo(gates_tables.sizes_table(runs))
        if not only_tables:
            runs.train(Corpus(train), Corpus(valid))
        text = gates_tables.report(runs)
        with naming(out / "gates.md"):
            (out / "gates.md").write_text(text)
        typer.echo(text)
        plots.gates({name: runs.finished(name) for name in chosen}, out / "gates.png")
    except KeyboardInterrupt:
        fail(f"stopped; {out} holds the finished runs, the same command goes on from them")
    except (OSError, ValueError, plots.MissingMatplotlib) as error:
        fail(error)


@report.command()
def speed(
    out: Out,
    recipe: Annotated[
        Path, typer.Option(help="The convolutional model; the LSTM gets its size.")
    ] = RECIPES / "prose-18m.toml",
    layers: Annotated[int, typer.Option(min=1, help="Layers of the LSTM.")] = 1,
    threads: Annotated[int, typer.Option(min=0, help="ONNX Runtime's; 0 for one a core.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of all variants in turn.")] = 5,
    device: Annotated[DeviceName, typer.Option(help="Where to compute.")] = DeviceName.cpu,
    clock: Annotated[
        ClockName, typer.Option(help="`cpu`, with one thread, where other programs run too.")
    ] = ClockName.wall,
    texts: Annotated[int, typer.Option(min=1, help="Texts for the throughput.")] = 256,
    text_tokens: Annotated[int, typer.Option(min=1, help="Their length.")] = 32,
    long_tokens: Annotated[int, typer.Option(min=1, help="The one long text's length.")] = 15_000,
    longest: Annotated[int, typer.Option(min=16, help="The longest text of the curve.")] = 16_384,
) -> None:
    """Time the convolutional model and an LSTM of its size on the same ONNX Runtime.

    Weights are random: speed does not depend on them. Run it on a machine that does nothing else,
    or with one thread and --clock cpu.
    See docs/howto/report.md.
    """
    try:
        from model.core.config import ModelConfig
        from model.report import plots, speed_tables
        from model.report import speed as timing
        from model.training.recipe import RunConfig
    except ImportError:
        fail(MISSING)
    try:
        config = RunConfig.read(recipe).model
        if not isinstance(config, ModelConfig):
            fail(f"{recipe} is no recipe of a convolutional model")
        plan = timing.Plan(
            texts=texts,
            text_tokens=text_tokens,
            long_tokens=long_tokens,
            lengths=tuple(n for n in timing.LENGTHS if n <= longest),
            rounds=rounds,
            threads=threads,
            device=device.value,
            clock=clock.value,
        )
        timings = timing.measure(config, recipe.stem, plan, layers)
        text = speed_tables.report(timings)
        with naming(out / "speed.md"):
            timing.save(timings, out)
            (out / "speed.md").write_text(text)
        typer.echo(text)
        plots.lengths(timings.lengths, out / "speed.png")
    except (OSError, ValueError, plots.MissingMatplotlib) as error:
        fail(error)


@report.command()
def training(
    train: Annotated[Path, typer.Option("--train", help="A prepared corpus to learn from.")],
    recipe: Annotated[Path, typer.Option(help="The model and its optimiser.")] = RECIPES
    / "prose-18m-2.toml",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the median counts.")] = 5,
    updates: Annotated[int, typer.Option(min=1, help="Updates in a round.")] = 4,
    clock: Annotated[
        ClockName, typer.Option(help="`cpu`, with one thread, where other programs run too.")
    ] = ClockName.wall,
) -> None:
    """Time training beside the matrix products of the machine, and say where the time goes.

    Nothing is kept. OMP_NUM_THREADS sets the threads. See docs/howto/report.md.
    """
    try:
        from model.data.corpus import Corpus
        from model.report import training as timing
        from model.report.machine import machine
        from model.training.recipe import RunConfig
    except ImportError:
        fail(MISSING)
    try:
        found = timing.measure(RunConfig.read(recipe), Corpus(train), updates, rounds, clock.value)
    except (OSError, ValueError) as error:
        fail(error)
    typer.echo(f"{machine()}\n\n{timing.table(found)}")
