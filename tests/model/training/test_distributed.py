"""Two processes that share each batch learn what one does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from model.cli.main import offline
from model.core.tokenizer import Tokenizer
from model.data.corpus import prepare
from model.training import checkpoint
from tests import texts

RECIPE = """
[model]
vocabulary = {vocabulary}
embedding = 16
blocks = [{{ layers = [[3, 16]], repeat = 2 }}]
cutoffs = [50, {last}]

[optim]
name = "{optimiser}"
warmup_steps = 2
average_decay = 0.5

[train]
steps = 8
batch_rows = 4
row_tokens = 40
rows_at_once = 1
validate_every = 2
"""

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def arguments(folder: Path, out: str, init: str | None) -> list[str]:
    """A command's arguments for a run of the folder's recipe on its corpus."""
    corpus = folder / "corpus"
    given = ["train", folder / "recipe.toml", "--train", corpus, "--valid", corpus]
    given += ["--out", folder / out] + (["--init", folder / init] if init else [])
    return [str(argument) for argument in given]


def losses_of_one(folder: Path, out: str, init: str | None = None) -> list[float]:
    """The validation losses of a run in this process."""
    done = CliRunner().invoke(offline, arguments(folder, out, init))
    assert done.exit_code == 0, done.output
    return losses(folder / out)


def losses_of_two(folder: Path, out: str, init: str | None = None) -> list[float]:
    """The validation losses of a run that two processes share."""
    command = [sys.executable, *TORCHRUN, "-m", "app.cli", *arguments(folder, out, init)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return losses(folder / out)


def losses(run: Path) -> list[float]:
    """The validation losses of a run."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["valid_loss"] for line in lines]


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_two_processes_have_the_losses_of_one(
    tokenizer: Tokenizer, tmp_path: Path, optimiser: str
) -> None:
    prepare(iter(texts.ALL), tokenizer, tmp_path / "corpus")
    recipe = RECIPE.format(vocabulary=tokenizer.size, last=tokenizer.size - 2, optimiser=optimiser)
    (tmp_path / "recipe.toml").write_text(recipe)
    one = losses_of_one(tmp_path, "one")
    two = losses_of_two(tmp_path, "two")
    assert len(one) == 4
    assert two == pytest.approx(one, abs=1e-5)


def test_two_processes_keep_ngrams_and_a_grid_as_one_does(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    prepare(iter(texts.ALL), tokenizer, tmp_path / "corpus")
    recipe = RECIPE.format(vocabulary=tokenizer.size, last=tokenizer.size - 2, optimiser="muon")
    ngrams = "weight_norm = false\nngrams = [{ order = 2, rows = 99, channels = 8 }]\n\n[optim]"
    recipe = recipe.replace("[optim]", ngrams)
    (tmp_path / "recipe.toml").write_text(recipe.replace("steps = 8", "steps = 2"))
    losses_of_one(tmp_path, "first")
    recipe = recipe.replace("steps = 8", "steps = 4") + "keep_ngrams = true\n"
    (tmp_path / "recipe.toml").write_text(recipe)
    without = losses_of_one(tmp_path, "without", "first/best.pt")
    (tmp_path / "recipe.toml").write_text(recipe + "grid = 1.0\ngrid_after = 1")
    one = losses_of_one(tmp_path, "one", "first/best.pt")
    two = losses_of_two(tmp_path, "two", "first/best.pt")
    assert len(one) == 2
    # a weight at the middle of two multiples may go to either
    assert two == pytest.approx(one, abs=1e-4)
    assert without != pytest.approx(one, abs=1e-3)
    tables = [
        checkpoint.load(tmp_path / run / "best.pt")["model"]["ngrams.0.table.weight"]
        for run in ("first", "one", "two")
    ]
    assert all(torch.equal(tables[0], table) for table in tables[1:])
