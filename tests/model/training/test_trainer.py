"""Data and training on small real text: resuming, interruption, recipes."""

from __future__ import annotations

import json
import lzma
import math
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard

from model.architecture import rounding
from model.architecture.causal import CausalModel
from model.architecture.gcnn import GCNN
from model.architecture.lstm import LSTM
from model.core.config import LSTMConfig, ModelConfig
from model.core.tokenizer import Tokenizer
from model.data.corpus import Corpus, prepare, read_documents, windows
from model.evaluation.scoring import evaluate, logprobs, validation_loss
from model.training import checkpoint, optim
from model.training.optim import Muon, OptimConfig
from model.training.recipe import RunConfig, TrainConfig
from model.training.trainer import Trainer
from tests import texts


@pytest.fixture(scope="module")
def corpus(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    prepare(iter(texts.ALL), tokenizer, folder)
    return Corpus(folder)


def recipe(tokenizer: Tokenizer, **optim_fields: object) -> RunConfig:
    model = {
        "vocabulary": tokenizer.size,
        "embedding": 16,
        "blocks": [{"layers": [[3, 16]], "repeat": 2}],
    }
    return RunConfig(
        model=ModelConfig.model_validate(model),
        optim=OptimConfig.model_validate({"warmup_steps": 2} | optim_fields),
        train=TrainConfig(
            steps=12,
            batch_rows=2,
            row_tokens=24,
            dropout=0.1,
            precision="float32",  # what the tolerances are for, on any processor
            validate_every=4,
        ),
    )


def test_documents_are_split_at_the_marker_in_any_container(tmp_path: Path) -> None:
    raw = "%%DOC\ta\nfirst\nsecond\n%%DOC\tb\n\u00e9\n".encode()
    (tmp_path / "a.txt").write_bytes(raw)
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(raw))
    (tmp_path / "a.txt.zst").write_bytes(zstandard.compress(raw))
    for path in sorted(tmp_path.iterdir()):
        assert list(read_documents([path], "%%DOC")) == ["first\nsecond", "\u00e9"]
    assert len(list(read_documents(sorted(tmp_path.iterdir())))) == 3


def test_every_line_can_be_a_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("first\n\n second \nthird")
    assert list(read_documents([path], each_line=True)) == ["first", " second ", "third"]


def test_a_missing_corpus_says_where_the_recipes_text_is(tmp_path: Path) -> None:
    arguments = ["train", "model/recipes/gcnn-14.toml", "--out", tmp_path / "run"]
    arguments += ["--train", tmp_path / "none", "--valid", tmp_path / "none"]
    command = [sys.executable, "-m", "app.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "none has no prepared corpus" in done.stderr
    assert "WikiText-103 (Merity et al. 2016)" in done.stderr


def test_a_missing_file_says_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="UTF-8 text files"):
        list(read_documents([tmp_path / "none.txt"]))


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("good\n")
    (tmp_path / "b.txt").write_bytes(b"good\nbad \xff\n")
    with pytest.raises(ValueError, match=r"b\.txt is not UTF-8"):
        list(read_documents([tmp_path / "a.txt", tmp_path / "b.txt"]))


def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_text("hello")
    for state in (None, {"config": 1}, [1]):
        if state is not None:
            torch.save(state, path)
        with pytest.raises(ValueError, match=r"a\.pt is not a checkpoint") as caught:
            checkpoint.load_model(path)
        assert len(str(caught.value)) < 200
        assert "weights_only" not in str(caught.value)


def test_a_corpus_keeps_documents_and_counts(corpus: Corpus, tokenizer: Tokenizer) -> None:
    assert corpus.counts.documents == len(texts.ALL)
    assert corpus.counts.bytes == sum(len(text.encode()) for text in texts.ALL)
    assert corpus.counts.words == sum(len(text.split()) for text in texts.ALL)
    for text, begin, end in zip(texts.ALL, corpus.documents, corpus.documents[1:], strict=False):
        ids = corpus.tokens[begin:end]
        assert ids[0] == tokenizer.start_id
        assert ids[-1] == tokenizer.end_id
        assert tokenizer.decode(ids) == text
    lines = sum(bool(line) for text in texts.ALL for line in text.split("\n"))
    assert len(corpus.lines) == lines


def test_training_rows_begin_with_the_start_symbol_at_a_line(
    corpus: Corpus, tokenizer: Tokenizer
) -> None:
    inputs, targets = windows(corpus, 50, 120, tokenizer.start_id, np.random.default_rng(0))
    assert inputs.shape == targets.shape == (50, 120)
    assert (inputs[:, 0] == tokenizer.start_id).all()
    assert (inputs[:, 1:] == tokenizer.start_id).any()  # a document ended inside some row
    assert (targets != tokenizer.start_id).all()
    begun = {text[:8] for doc in texts.ALL for text in doc.split("\n")}
    shown = {tokenizer.decode(row[:20])[:8] for row in targets if (row[:20] >= 0).all()}
    assert shown <= begun


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as in a foreground program, also where the tests run in a shell's background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("name", ["adamw", "muon", "nesterov"])
def test_a_run_stopped_at_any_step_ends_with_the_same_loss(
    corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path, name: str
) -> None:
    extra = {
        "adamw": {},
        "muon": {"average_decay": 0.7},
        "nesterov": {"schedule": "plateau", "learning_rate": 0.5},
    }[name]
    config = recipe(tokenizer, name=name, **extra)
    whole = Trainer(config, corpus, corpus, tmp_path / "whole")
    whole.run()
    for stop in (1, 5, 9):
        folder = tmp_path / f"stopped-{stop}"
        first = Trainer(config, corpus, corpus, folder)
        optimizer = first.optimizers[-1]

        def interrupted(first=first, stop=stop, original=optimizer.step) -> None:  # type: ignore[no-untyped-def]
            if first.step == stop - 1:  # in the middle of an update, which is not torn apart
                signal.raise_signal(signal.SIGINT)
            original()

        optimizer.step = interrupted  # type: ignore[method-assign, assignment]
        with pytest.raises(KeyboardInterrupt):
            first.run()
        second = Trainer(config, corpus, corpus, folder)
        assert second.step == stop
        assert second.run() == pytest.approx(whole.best, abs=1e-5)
        for one, other in zip(second.model.parameters(), whole.model.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


KILLED_RUNS = """
import os, random, signal, sys, time
from pathlib import Path
from model.data.corpus import Corpus
from model.training.recipe import RunConfig
from model.training.trainer import Trainer

config = RunConfig.model_validate_json(Path(sys.argv[1]).read_text())
corpus = Corpus(Path(sys.argv[2]))
moments = random.Random(5)
for kills_left in reversed(range(5)):
    process = os.fork()  # PyTorch is imported once, and has no threads yet
    if process == 0:
        Trainer(config, corpus, corpus, Path(sys.argv[3])).run()
        os._exit(0)
    if kills_left:
        time.sleep(moments.uniform(0.05, 0.6))
        os.kill(process, signal.SIGKILL)
    status = os.waitpid(process, 0)[1]
sys.exit(status)
"""


def test_a_run_killed_at_a_random_moment_ends_with_the_same_loss(
    corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """The process is killed for good, wherever it is, until one of its runs gets through."""
    config = recipe(tokenizer, name="muon", average_decay=0.7)
    steps = config.train.model_copy(update={"steps": 40, "checkpoint_seconds": 0.01})
    config = config.model_copy(update={"train": steps})
    (tmp_path / "recipe.json").write_text(config.model_dump_json())
    whole = Trainer(config, corpus, corpus, tmp_path / "whole").run()
    files = [tmp_path / "recipe.json", corpus.folder, tmp_path / "killed"]
    subprocess.run([sys.executable, "-c", KILLED_RUNS, *map(str, files)], check=True)
    assert checkpoint.load(tmp_path / "killed" / "last.pt")["step"] == 40
    assert checkpoint.load(tmp_path / "killed" / "best.pt")["best"] == pytest.approx(
        whole, abs=1e-5
    )


@pytest.mark.parametrize("name", ["best.pt", "metrics.jsonl"])
def test_what_a_new_run_would_write_over_is_kept(
    corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("mine\n")
    with pytest.raises(FileExistsError, match=rf"has {name}, but no last\.pt .*; choose another"):
        Trainer(recipe(tokenizer), corpus, corpus, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine\n"


def test_a_run_killed_behind_its_first_best_goes_on(
    corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(tokenizer)
    whole = Trainer(config, corpus, corpus, tmp_path / "whole").run()
    save = checkpoint.save

    def killed(path: Path, state: checkpoint.State) -> None:
        save(path, state)
        if path.name == "best.pt":
            raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", killed)
        with pytest.raises(SystemExit):
            Trainer(config, corpus, corpus, tmp_path / "killed").run()
    with pytest.raises(ValueError, match="another optimiser"):  # the best one would be lost
        Trainer(recipe(tokenizer, name="muon"), corpus, corpus, tmp_path / "killed")
    again = Trainer(config, corpus, corpus, tmp_path / "killed").run()
    assert again == pytest.approx(whole, abs=1e-5)


def test_a_run_that_failed_at_once_can_begin_again_with_another_recipe(
    corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failed(_: Trainer) -> float:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", failed)
        with pytest.raises(RuntimeError):
            Trainer(recipe(tokenizer), corpus, corpus, tmp_path).run()
    Trainer(recipe(tokenizer, name="muon"), corpus, corpus, tmp_path).run()
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 12


def test_a_run_does_not_go_on_with_another_optimiser(
    corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    Trainer(recipe(tokenizer), corpus, corpus, tmp_path).run()
    for fields in ({"name": "muon"}, {"average_decay": 0.9}):
        with pytest.raises(ValueError, match="another optimiser or averaging"):
            Trainer(recipe(tokenizer, **fields), corpus, corpus, tmp_path)
    state = checkpoint.load(tmp_path / "last.pt")
    del state["optimizers"]
    checkpoint.save(tmp_path / "last.pt", state)
    with pytest.raises(ValueError, match="older version"):
        Trainer(recipe(tokenizer), corpus, corpus, tmp_path)


def test_lines_as_documents_end_with_the_token_that_ends_lines(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo\n")
    prepare(read_documents([path], each_line=True), tokenizer, tmp_path / "lines", end="\n")
    corpus = Corpus(tmp_path / "lines")
    bounds = zip(corpus.documents, corpus.documents[1:], strict=False)
    found = [tokenizer.decode(corpus.tokens[begin:end].tolist()) for begin, end in bounds]
    assert found == ["one\n", "two\n"]
    assert tokenizer.end_id not in corpus.tokens
    assert len(corpus.lines) == 2


@pytest.mark.parametrize("kind", ["adaptive", "lstm"])
def test_training_and_evaluation_see_the_same_texts(
    kind: str, adaptive_model: GCNN, tokenizer: Tokenizer
) -> None:
    """A start symbol inside a row begins a text, n-grams included; only an LSTM's state runs on."""
    rng = np.random.default_rng(3)
    ids = np.concatenate([[0], rng.integers(2, 400, 30), [0], rng.integers(2, 400, 50)])
    model: CausalModel = adaptive_model
    if kind == "lstm":
        ngrams = [{"order": 3, "rows": 50, "channels": 4}]
        fields = {"vocabulary": tokenizer.size, "embedding": 8, "lstm": [12], "ngrams": ngrams}
        model = LSTM(LSTMConfig.model_validate(fields), tokenizer.start_id).eval()
        torch.nn.init.normal_(model.ngrams[0].table.weight)  # type: ignore[union-attr, arg-type]
    with torch.inference_mode():
        row = torch.from_numpy(ids)[None]
        trained = -model.output.losses(model.hidden(row[:, :-1])[0], row[0, 1:]).numpy()
        whole = torch.cat(list(model.pieces(ids, 1000)))
        for size in (1, 7, 31, 40):
            torch.testing.assert_close(torch.cat(list(model.pieces(ids, size))), whole)
    found = logprobs(model, ids)
    apart = [logprobs(model, ids[:31]), logprobs(model, ids[31:])]
    np.testing.assert_allclose(np.delete(found, 30), np.concatenate(apart), atol=1e-4)
    known = 30 if kind == "lstm" else len(trained)
    np.testing.assert_allclose(trained[:known], found[:known], atol=1e-4)


def test_evaluation_stays_on_the_models_device(adaptive_model: GCNN) -> None:
    """Without a GPU: tensors of a model on the device `meta`, which refuses to mix with others."""
    with torch.device("meta"):
        model = GCNN(adaptive_model.config, adaptive_model.start_id).eval()
    assert model.on_device(np.arange(60)).is_meta


def test_gradients_are_clipped(corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path) -> None:
    trainer = Trainer(recipe(tokenizer, clip_norm=1e-3), corpus, corpus, tmp_path)
    for _ in range(2):
        trainer.advance()
        gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        assert float(norm) == pytest.approx(1e-3, rel=1e-2)


def test_rows_at_once_change_nothing_but_memory(
    corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config = recipe(tokenizer)
    whole = config.train.model_copy(update={"dropout": 0.0, "batch_rows": 4})
    unclipped = config.optim.model_copy(update={"clip_norm": 1e9})
    losses, batches, gradients = [], [], []
    for rows in (None, 1, 3):
        train = whole.model_copy(update={"rows_at_once": rows})
        run = config.model_copy(update={"train": train})
        losses.append(Trainer(run, corpus, corpus, tmp_path / str(rows)).run())
        run = run.model_copy(update={"optim": unclipped})
        trainer = Trainer(run, corpus, corpus, tmp_path / f"one {rows}")
        batches.append(trainer.advance())
        gradients.append([p.grad for p in trainer.model.parameters()])
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)
    assert batches == pytest.approx([batches[0]] * 3, abs=1e-5)
    for parts in gradients[1:]:
        torch.testing.assert_close(parts, gradients[0], rtol=1e-4, atol=1e-6)


def test_identity_blocks_are_drawn_so_before_training(
    corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config = recipe(tokenizer)
    plain = config.model.model_copy(update={"weight_norm": False, "residual_scale": 1.0})
    for flag in (False, True):
        train = config.train.model_copy(update={"identity_blocks": flag})
        run = config.model_copy(update={"model": plain, "train": train})
        trainer = Trainer(run, corpus, corpus, tmp_path / str(flag))
        deviations = [
            float(layer.weight.detach().std()) for b in trainer.model.blocks for layer in b.layers
        ]
        assert all((deviation < 1e-3) is flag for deviation in deviations)
    recurrent = run.model_copy(
        update={"model": LSTMConfig(vocabulary=tokenizer.size, embedding=16, lstm=(16,))}
    )
    with pytest.raises(ValueError, match="convolutional"):
        Trainer(recurrent, corpus, corpus, tmp_path / "lstm")


def test_ngrams_can_be_kept_as_they_were(
    corpus: Corpus, tokenizer: Tokenizer, adaptive_model: GCNN, tmp_path: Path
) -> None:
    initial = adaptive_model.folded()
    config = recipe(tokenizer)
    train = config.train.model_copy(update={"keep_ngrams": True})
    config = config.model_copy(update={"model": initial.config, "train": train})
    with pytest.raises(ValueError, match="--init"):
        Trainer(config, corpus, corpus, tmp_path / "none")
    plain = config.model_copy(update={"model": recipe(tokenizer).model})
    with pytest.raises(ValueError, match="with n-grams"):
        Trainer(plain, corpus, corpus, tmp_path / "none")
    optim = config.optim.model_copy(update={"average_decay": 0.9})
    config = config.model_copy(update={"optim": optim})
    half = config.model_copy(update={"train": train.model_copy(update={"steps": 6})})
    Trainer(half, corpus, corpus, tmp_path / "run", initial=initial).run()
    resumed = Trainer(config, corpus, corpus, tmp_path / "run")
    resumed.run()
    before = initial.state_dict()
    assert resumed.average is not None
    for model in (resumed.model, resumed.average.module):
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]) is name.endswith("table.weight"), name


def test_a_model_learns_with_its_weights_on_a_grid(
    corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(tokenizer)
    train = config.train.model_copy(update={"grid": 0.5, "grid_after": 3, "dropout": 0.0})
    config = config.model_copy(update={"train": train})
    with pytest.raises(ValueError, match="weight_norm"):
        Trainer(config, corpus, corpus, tmp_path / "none")
    model = config.model.model_copy(update={"weight_norm": False})
    config = config.model_copy(update={"model": model})
    trainer = Trainer(config, corpus, corpus, tmp_path / "run")
    seen: list[bool] = []
    forward = trainer.model.forward

    def noted(*tensors: torch.Tensor) -> torch.Tensor:
        weights = [rounding.bytes_of(weight) is not None for weight in trainer.model.gridded()]
        assert all(weights) or not any(weights)
        seen.append(all(weights))
        return forward(*tensors)

    monkeypatch.setattr(trainer.model, "forward", noted)
    before = [weight.detach().clone() for weight in trainer.model.gridded()]
    for _ in range(6):
        trainer.advance()
    assert seen == [False] * 3 + [True] * 3
    after = trainer.model.gridded()
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(rounding.bytes_of(weight) is None for weight in after)
    best = trainer.run()
    kept, _, _ = checkpoint.load_model(tmp_path / "run" / "best.pt")
    assert isinstance(kept, GCNN)
    found = validation_loss(kept.stored(0.5), corpus, config.train.validate_tokens)
    assert found == pytest.approx(best, abs=1e-5)
    coarser = config.train.model_copy(update={"grid": 1.0})
    resumed = Trainer(
        config.model_copy(update={"train": coarser}), corpus, corpus, tmp_path / "run"
    )
    assert resumed.best == math.inf  # what was best was on another grid
    with pytest.raises(RuntimeError, match="no"), resumed._on_grid(resumed.model):
        raise RuntimeError("no")
    assert all(rounding.bytes_of(weight) is None for weight in resumed.model.gridded())


def test_the_averaged_weights_are_what_is_kept(
    corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config = recipe(tokenizer, average_decay=0.9, learning_rate=1e-2)
    trainer = Trainer(config, corpus, corpus, tmp_path)
    expected: list[torch.Tensor] = []
    original = trainer.advance

    def followed() -> float:
        loss = original()
        now = [parameter.detach().clone() for parameter in trainer.model.parameters()]
        before = expected or now  # the first update's weights begin the average
        expected[:] = [old.lerp(new, 0.1) for old, new in zip(before, now, strict=True)]
        return loss

    trainer.advance = followed  # type: ignore[method-assign]
    trainer.run()
    model, _, _ = checkpoint.load_model(tmp_path / "best.pt")
    for one, other in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_a_kill_while_saving_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path / "last.pt", {"step": 1})

    def killed(state: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise SystemExit

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(SystemExit):
        checkpoint.save(tmp_path / "last.pt", {"step": 2})
    assert checkpoint.load(tmp_path / "last.pt") == {"step": 1}


def test_training_learns_and_keeps_the_best_and_its_metrics(
    corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config = recipe(tokenizer, learning_rate=1e-2)
    longer = config.model_copy(update={"train": config.train.model_copy(update={"steps": 60})})
    best = Trainer(longer, corpus, corpus, tmp_path).run()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == list(range(4, 61, 4))
    assert best == min(r["valid_loss"] for r in records) < records[0]["valid_loss"] - 0.3
    model, _, state = checkpoint.load_model(tmp_path / "best.pt")
    totals = evaluate(model, corpus)
    assert totals.token_count == corpus.counts.tokens - corpus.counts.documents
    assert -totals.logprob_sum / totals.token_count == pytest.approx(best, abs=1e-4)
    assert state["best"] == best


def test_evaluation_sums_the_documents_each_on_its_own(
    corpus: Corpus, tokenizer: Tokenizer, tiny_model: torch.nn.Module
) -> None:
    apart = 0.0
    for begin, end in zip(corpus.documents, corpus.documents[1:], strict=False):
        ids = np.asarray(corpus.tokens[begin:end], np.int64)
        apart += float(logprobs(tiny_model, ids).sum(dtype=np.float64))  # type: ignore[arg-type]
    together = evaluate(tiny_model, corpus)  # type: ignore[arg-type]
    assert together.logprob_sum == pytest.approx(apart, rel=1e-6)
    assert together.word_count == corpus.counts.words + corpus.counts.documents


def test_a_tokenizer_of_another_size_is_refused(
    corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config = recipe(tokenizer)
    other = config.model_copy(update={"model": config.model.model_copy(update={"vocabulary": 77})})
    with pytest.raises(ValueError, match=r"model\.vocabulary is 77"):
        Trainer(other, corpus, corpus, tmp_path)


def test_the_trapezoid_rises_stays_and_falls_to_zero() -> None:
    config = OptimConfig(warmup_steps=10, cooldown=0.5)
    factors = [optim.trapezoid(config, step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[10:50] == [1.0] * 40
    assert factors[99] == pytest.approx(0.02)


def test_the_nesterov_step_is_the_papers() -> None:
    """p - lr (g + mu v), v = mu v + g (Sutskever et al. 2013, as PyTorch arranges it)."""
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    model = torch.nn.Module()
    model.weight = parameter
    config = OptimConfig(name="nesterov", learning_rate=0.1, momentum=0.99, weight_decay=0.0)
    [optimizer] = optim.build(config, model)
    expected, velocity = 1.0, 0.0
    for gradient in (0.5, -0.2, 0.3):
        parameter.grad = torch.tensor([gradient])
        optimizer.step()
        velocity = 0.99 * velocity + gradient
        expected -= 0.1 * (gradient + 0.99 * velocity)
        assert float(parameter.detach()) == pytest.approx(expected, rel=1e-6)


def test_muon_steps_are_orthogonal_and_as_large_as_adamws() -> None:
    parameter = torch.nn.Parameter(torch.randn(24, 60))
    before = parameter.detach().clone()
    parameter.grad = torch.randn(24, 60) * 37
    Muon([parameter], lr=0.1).step()
    step = before - parameter.detach()
    lengths = torch.linalg.svdvals(step)
    assert float(lengths.max() / lengths.min()) < 2.5
    assert float(step.square().mean().sqrt()) == pytest.approx(0.1 * 0.2, rel=0.3)


def test_orthogonal_takes_singular_values_near_one() -> None:
    """Down to a three hundredth of the norm, in bfloat16 too; one that is the norm stays finite."""
    left, _, right = torch.linalg.svd(torch.randn(90, 64), full_matrices=False)
    for smallest in (1.0, 0.1, 0.02):
        values = torch.linspace(1.0, smallest, 64)
        for matrix in (left @ values.diag() @ right, (left @ values.diag() @ right).T):
            lengths = torch.linalg.svdvals(optim.orthogonalize(1e-3 * matrix))
            assert float(lengths.min()) > 0.7
            assert float(lengths.max()) < 1.3
    alone = torch.outer(torch.randn(90), torch.randn(64))
    assert float(torch.linalg.svdvals(optim.orthogonalize(alone)).max()) < 1.3
    assert torch.equal(optim.orthogonalize(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_muon_leaves_tables_softmax_and_vectors_to_adamw(adaptive_model: GCNN) -> None:
    hidden, adamw = optim.build(OptimConfig(name="muon"), adaptive_model)
    names = {id(p): n for n, p in adaptive_model.named_parameters()}
    taken = {names[id(p)] for group in hidden.param_groups for p in group["params"]}
    left = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert taken | left == set(names.values())
    assert not taken & left
    assert "ngrams.0.mix.weight" in taken
    assert {"embedding.weight", "output.head.weight", "ngrams.0.table.weight"} <= left


@pytest.mark.parametrize("path", sorted(Path("model/recipes").glob("*.toml")), ids=str)
def test_every_recipe_is_valid(path: Path) -> None:
    RunConfig.read(path)


def test_a_broken_recipe_names_the_field(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("[model]\nvocabulary = 0\n")
    with pytest.raises(ValueError, match=r"r\.toml: model\.vocabulary: ") as caught:
        RunConfig.read(path)
    assert "pydantic" not in str(caught.value)
    path.write_text('model = "small"\n')
    with pytest.raises(ValueError, match=r"r\.toml: model: "):
        RunConfig.read(path)
    path.write_text("[model")
    with pytest.raises(ValueError, match="not TOML"):
        RunConfig.read(path)
