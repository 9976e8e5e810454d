"""Compares gates: same budget, same parameters, several seeds (Dauphin 2017, section 5.2).

Each gate is trained with every learning rate on the first seed, and with its best rate on the other
seeds, so that no gate suffers from a rate that suits another.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from model.core.config import ModelConfig
from model.core.gates import GATES, GateName
from model.core.outputs import cut_torn_line, naming
from model.core.processor import machine
from model.data.corpus import Corpus
from model.report.sizes import with_gate
from model.training.recipe import RunConfig
from model.training.start import METRICS
from model.training.trainer import Trainer

RESULTS = "gates.jsonl"


@dataclass(frozen=True, slots=True)
class Point:
    """A validation: the updates, tokens and processor time before it, and its loss.

    `cpu_seconds` are those of all threads of the process during updates. Unlike a clock they leave
    out other programs, but not the cost of sharing caches with them. `loss` is in nats per token.
    """

    step: int
    tokens: int
    cpu_seconds: float
    loss: float


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run. config: its recipe as JSON. diverged: its loss became NaN or infinite."""

    config: str
    points: tuple[Point, ...]
    diverged: bool

    @property
    def recipe(self) -> RunConfig:
        """The recipe."""
        return RunConfig.model_validate_json(self.config)

    @property
    def loss(self) -> float:
        """The last validation's, in nats per token; infinite for a run that diverged."""
        last = math.inf if self.diverged or not self.points else self.points[-1].loss
        return last if math.isfinite(last) else math.inf

    @property
    def perplexity(self) -> float:
        """exp of the loss; infinite if it is beyond a float."""
        return perplexity(self.loss)

    @property
    def cpu_seconds(self) -> float:
        """Processor time of all updates."""
        return self.points[-1].cpu_seconds if self.points else math.nan


def perplexity(loss: float) -> float:
    """exp of a loss in nats; infinite if it is beyond a float."""
    return math.exp(loss) if loss < 700 else math.inf


class Comparison:
    """The runs of a recipe with each gate, in one folder: a line of `gates.jsonl` for each.

    A recipe that has a line is not trained again. A folder is for one pair of corpora, which the
    lines do not name.
    """

    def __init__(
        self,
        recipe: RunConfig,
        folder: Path,
        *,
        gates: Iterable[GateName] = GATES,
        rates: Sequence[float] = (),
        seeds: Sequence[int] = (0, 1, 2),
    ) -> None:
        if not isinstance(recipe.model, ModelConfig):
            raise ValueError("the gates are compared on a convolutional model; give such a recipe")
        self.recipe, self.folder = recipe, folder
        self.gates, self.seeds = gates, seeds
        self.rates = rates or (recipe.optim.learning_rate,)
        self.models = {gate: with_gate(recipe.model, gate) for gate in gates}
        self.runs: dict[str, Run] = {}
        folder.mkdir(parents=True, exist_ok=True)
        cut_torn_line(folder / RESULTS)
        if (folder / RESULTS).exists():
            for number, line in enumerate((folder / RESULTS).read_text().splitlines(), 1):
                try:
                    run = _read(line)
                except (ValueError, LookupError, TypeError) as error:
                    raise ValueError(
                        f"{folder / RESULTS}: line {number} is not a run ({type(error).__name__}); "
                        "remove it to make the run again"
                    ) from error
                self.runs[run.config] = run

    def train(self, train: Corpus, valid: Corpus) -> int:
        """Makes the missing runs; returns their number."""
        made = 0
        for configs in (self._sweep, self._repeats):
            for gate in self.gates:
                for config in configs(gate):
                    if config.model_dump_json() not in self.runs:
                        self._add(_train(config, train, valid))
                        made += 1
        return made

    def finished(self, gate: GateName) -> list[Run]:
        """The runs so far of a gate at its best rate, by seed."""
        if self.best_rate(gate) is None:
            return []
        wanted = (c.model_dump_json() for c in self._repeats(gate))
        return [self.runs[config] for config in wanted if config in self.runs]

    def best_rate(self, gate: GateName) -> float | None:
        """The learning rate with the lowest loss on the first seed; None while a run is missing."""
        losses = self.losses_of_rates(gate)
        return min(losses, key=losses.__getitem__) if len(losses) == len(self.rates) else None

    def losses_of_rates(self, gate: GateName) -> dict[float, float]:
        """The first seed's loss with each learning rate so far."""
        done = ((c.optim.learning_rate, c.model_dump_json()) for c in self._sweep(gate))
        return {rate: self.runs[config].loss for rate, config in done if config in self.runs}

    def _sweep(self, gate: GateName) -> Iterator[RunConfig]:
        return (self._config(gate, rate, self.seeds[0]) for rate in self.rates)

    def _repeats(self, gate: GateName) -> Iterator[RunConfig]:
        rate = self.best_rate(gate)
        assert rate is not None
        return (self._config(gate, rate, seed) for seed in self.seeds)

    def _config(self, gate: GateName, rate: float, seed: int) -> RunConfig:
        recipe = self.recipe
        return recipe.model_copy(
            update={
                "model": self.models[gate],
                "optim": recipe.optim.model_copy(update={"learning_rate": rate}),
                "train": recipe.train.model_copy(update={"seed": seed}),
            }
        )

    def _add(self, run: Run) -> None:
        self.runs[run.config] = run
        with naming(path := self.folder / RESULTS), path.open("a") as file:
            file.write(json.dumps(asdict(run)) + "\n")


def _read(line: str) -> Run:
    fields = json.loads(line)
    points = tuple(Point(**point) for point in fields["points"])
    # read as a recipe, so that newer options have their defaults
    config = RunConfig.model_validate_json(fields["config"]).model_dump_json()
    return Run(config, points, fields["diverged"])


class _TimedTrainer(Trainer):
    """A trainer that measures the processor time of its updates."""

    seconds = 0.0

    def advance(self) -> float:
        began = time.process_time()
        loss = super().advance()
        self.seconds += time.process_time() - began
        self.spent[self.step] = self.seconds
        return loss

    def run_timed(self) -> tuple[list[Point], bool]:
        """Trains; returns the validations, and whether the run diverged."""
        self.spent: dict[int, float] = {}
        diverged = False
        try:
            self.run()
        except FloatingPointError:
            diverged = True
        points = []
        for line in (self.folder / METRICS).read_text().splitlines():
            r = json.loads(line)
            points.append(Point(r["step"], r["tokens"], self.spent[r["step"]], r["valid_loss"]))
        return points, diverged


def _train(config: RunConfig, train: Corpus, valid: Corpus) -> Run:
    with tempfile.TemporaryDirectory() as folder:  # not resumed: checkpoints lack the time spent
        points, diverged = _TimedTrainer(config, train, valid, Path(folder)).run_timed()
    return Run(config.model_dump_json(), tuple(points), diverged)


def gates_named(names: Sequence[str]) -> tuple[GateName, ...]:
    """The gates of these names, all without names. Raises ValueError."""
    unknown = sorted(set(names) - set(GATES))
    if unknown:
        raise ValueError(f"there is no gate {', '.join(unknown)}; there are {', '.join(GATES)}")
    return tuple(gate for gate in GATES if not names or gate in names)


def report(comparison: Comparison) -> str:
    """All tables, and how they were measured."""
    settings = comparison.recipe.train
    tokens = settings.steps * settings.batch_rows * settings.row_tokens
    parts = [
        "# Gates",
        f"{settings.steps:,} updates of {settings.batch_rows} rows of {settings.row_tokens} tokens "
        f"({tokens:,} tokens) for every gate; validation on {settings.validate_tokens:,} "
        "tokens. Each gate has the learning rate that was best for it on the first seed. CPU "
        "seconds are those of the process during updates; programs that share the caches "
        f"still lengthen them. {machine()}.",
        "## Models",
        sizes_table(comparison),
        "## Perplexity after the last update",
        results_table(comparison),
        "## Learning rates, first seed",
        rates_table(comparison),
    ]
    return "\n\n".join(parts) + "\n"


def sizes_table(comparison: Comparison) -> str:
    """Markdown: the models that are compared."""
    rows = [
        "| gate | channels | columns of a convolution | parameters |",
        "| --- | --- | --- | --- |",
    ]
    for gate, model in comparison.models.items():
        channels = model.blocks[0].layers[0][1]
        columns = channels * GATES[gate].halves
        rows.append(f"| {gate} | {channels} | {columns} | {model.parameters():,} |")
    return "\n".join(rows)


def results_table(comparison: Comparison) -> str:
    """Markdown: validation perplexities after the same updates, lowest first."""
    finished = {gate: comparison.finished(gate) for gate in comparison.gates}
    means = {
        gate: statistics.fmean([run.perplexity for run in runs])
        for gate, runs in finished.items()
        if runs
    }
    rows = [
        "| gate | learning rate | seeds | perplexity: mean | standard deviation "
        "| lowest to highest | CPU seconds of training |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for gate in sorted(means, key=lambda g: means[g]):
        values = [run.perplexity for run in finished[gate]]
        spread = len(values) > 1 and math.isfinite(means[gate])
        deviation = f"{statistics.stdev(values):.1f}" if spread else ""
        seconds = statistics.fmean([run.cpu_seconds for run in finished[gate]])
        rows.append(
            f"| {gate} | {comparison.best_rate(gate):g} | {len(values)} | {means[gate]:.1f} "
            f"| {deviation} | {min(values):.1f} to {max(values):.1f} "
            f"| {seconds:.1f} |"
        )
    return "\n".join(rows)


def rates_table(comparison: Comparison) -> str:
    """Markdown: the first seed's perplexity with each learning rate."""
    heads = " | ".join(f"{rate:g}" for rate in comparison.rates)
    rows = [f"| gate | {heads} |", "| --- |" + " --- |" * len(comparison.rates)]
    for gate in comparison.gates:
        losses = comparison.losses_of_rates(gate)
        cells = [f"{perplexity(losses[r]):.1f}" if r in losses else "" for r in comparison.rates]
        rows.append(f"| {gate} | {' | '.join(cells)} |")
    return "\n".join(rows)
