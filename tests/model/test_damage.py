"""Corpora, checkpoints and outputs that are damaged, of another kind, or cannot be written."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from model.architecture.gcnn import GCNN
from model.baselines import ngram
from model.cli.main import offline
from model.core import outputs
from model.core.tokenizer import END, START, Tokenizer, by_frequency, train_bpe
from model.data.corpus import Corpus, prepare, read_documents, windows
from model.evaluation.scoring import evaluate
from model.export.bundle_writer import export
from model.training import checkpoint
from model.training.recipe import RunConfig
from model.training.trainer import Trainer
from tests import texts
from tests.commands import refused

RECIPE = """
start_id = {start_id}
[model]
vocabulary = {vocabulary}
embedding = 8
tied = true
blocks = [{{ layers = [[2, 8]] }}]
[train]
steps = {steps}
batch_rows = 1
row_tokens = 8
"""


@pytest.fixture(scope="module")
def place(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer, a corpus, a recipe and a run of it."""
    folder = tmp_path_factory.mktemp("place")
    tokenizer.save(folder / "tokenizer.json")
    prepare(texts.ALL, tokenizer, folder / "corpus")
    write_recipe(folder / "r.toml", tokenizer)
    corpus = Corpus(folder / "corpus")
    Trainer(RunConfig.read(folder / "r.toml"), corpus, corpus, folder / "run").run()
    return folder


@pytest.fixture
def copy(place: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to spoil."""
    return Path(shutil.copytree(place, tmp_path / "copy"))


def write_recipe(path: Path, tokenizer: Tokenizer, steps: int = 1, start_id: int = 0) -> None:
    path.write_text(
        RECIPE.format(vocabulary=tokenizer.size, steps=steps, start_id=start_id), encoding="utf-8"
    )


def train(folder: Path, corpus: str = "corpus", valid: str = "corpus") -> tuple[object, ...]:
    """The arguments of `convlm train` in a folder."""
    corpora = ("--train", folder / corpus, "--valid", folder / valid)
    return ("train", folder / "r.toml", *corpora, "--out", folder / "run")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def text_of(path: Path, change: Callable[[dict[str, object]], object]) -> bytes:
    return json.dumps(change(json.loads(path.read_text()))).encode()


CORPUS_DAMAGES: dict[str, tuple[str, Callable[[Path], bytes]]] = {
    "tokens cut": ("tokens.bin", lambda path: path.read_bytes()[:100]),
    "half a token": ("tokens.bin", lambda path: path.read_bytes()[:-1]),
    "no tokens": ("tokens.bin", lambda _: b""),
    "tokens twice": ("tokens.bin", lambda path: path.read_bytes() * 2),
    "documents cut": ("documents.npy", lambda path: path.read_bytes()[:-3]),
    "no documents": ("documents.npy", lambda _: b""),
    "documents of another kind": ("documents.npy", lambda _: b"hello"),
    "lines cut": ("lines.npy", lambda path: path.read_bytes()[:-8]),
    "lines beyond": ("lines.npy", lambda path: path.read_bytes()[:-8] + b"\xff\xff" + bytes(6)),
    "empty facts": ("corpus.json", lambda _: b""),
    "facts cut": ("corpus.json", lambda path: path.read_bytes()[:40]),
    "facts that are a list": ("corpus.json", lambda _: b"[]"),
    "facts of something else": ("corpus.json", lambda _: b'{"a": 1}'),
    "facts without counts": ("corpus.json", lambda p: text_of(p, lambda f: f | {"counts": {}})),
    "an odd type": ("corpus.json", lambda p: text_of(p, lambda f: f | {"dtype": "object"})),
    "a word for a size": ("corpus.json", lambda p: text_of(p, lambda f: f | {"vocabulary": "x"})),
    "facts in Latin-1": ("corpus.json", lambda _: b"\xe9"),
}


@pytest.mark.parametrize("damage", CORPUS_DAMAGES)
def test_a_damaged_corpus_is_named_and_nothing_is_written(copy: Path, damage: str) -> None:
    name, change = CORPUS_DAMAGES[damage]
    path = copy / "corpus" / name
    path.write_bytes(change(path))
    before = contents(copy)
    for arguments in (
        ("evaluate", copy / "run" / "best.pt", copy / "corpus"),
        train(copy),
        ("report", "training", "--train", copy / "corpus", "--recipe", copy / "r.toml"),
    ):
        line = refused(*arguments)
        assert str(path) in line
        assert "convlm prepare" in line
    assert contents(copy) == before


def test_a_damaged_corpus_is_not_calibrated_on(copy: Path) -> None:
    path = copy / "corpus" / "tokens.bin"
    path.write_bytes(path.read_bytes()[:-2])
    export = ("export", copy / "run" / "best.pt", "--tokenizer", copy / "tokenizer.json")
    line = refused(*export, "--out", copy / "b", "--calibrate", copy / "corpus")
    assert str(path) in line
    assert not (copy / "b").exists()


def test_a_corpus_without_one_of_its_files_names_it(copy: Path) -> None:
    for name in ("tokens.bin", "documents.npy", "lines.npy"):
        corpus = Path(shutil.copytree(copy / "corpus", copy / f"without-{name}"))
        (corpus / name).unlink()
        assert str(corpus / name) in refused("evaluate", copy / "run" / "best.pt", corpus)


def test_a_token_beyond_the_vocabulary_is_damage(copy: Path, tiny_model: GCNN) -> None:
    path = copy / "corpus" / "tokens.bin"
    tokens = np.fromfile(path, np.uint16)
    tokens[20:] = 60000
    tokens.tofile(path)
    corpus = Corpus(copy / "corpus")
    with pytest.raises(ValueError, match=r"tokens\.bin: it has the token 60000"):
        evaluate(tiny_model, corpus)
    with pytest.raises(ValueError, match=r"tokens\.bin: it has the token 60000"):
        windows(corpus, 20, 20, 0, np.random.default_rng(0))


def other_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """Another one of the same size and start symbol."""
    found = by_frequency(tokenizer, ["zzz qqq"])
    assert found.size == tokenizer.size
    assert found.start_id == tokenizer.start_id
    return found


def test_a_corpus_of_another_tokenizer_is_refused(copy: Path, tokenizer: Tokenizer) -> None:
    other = other_tokenizer(tokenizer)
    prepare(texts.ALL, other, copy / "other")
    best = copy / "run" / "best.pt"
    write_recipe(copy / "r.toml", tokenizer, steps=2)
    before = contents(copy)
    for arguments in (
        ("evaluate", best, copy / "other"),
        train(copy, valid="other"),
        train(copy, "other", "other"),  # goes on with a run that saw the first one's tokens
        (*train(copy, "other", "other")[:-1], copy / "new", "--init", best),
    ):
        assert "other was prepared with another tokenizer" in refused(*arguments)
    assert contents(copy) == before


def without_fingerprint(corpus: Path) -> None:
    """Makes it a corpus of an earlier version."""
    facts = json.loads((corpus / "corpus.json").read_text())
    del facts["tokenizer"]
    (corpus / "corpus.json").write_text(json.dumps(facts))


def test_a_valid_corpus_of_another_tokenizer_is_refused_beside_an_old_one(
    copy: Path, tokenizer: Tokenizer
) -> None:
    prepare(texts.ALL, other_tokenizer(tokenizer), copy / "other")
    without_fingerprint(copy / "corpus")
    write_recipe(copy / "r.toml", tokenizer, steps=2)
    before = contents(copy)
    init = ("--init", copy / "run" / "best.pt")
    for arguments in (
        train(copy, valid="other"),
        (*train(copy, valid="other")[:-1], copy / "new", *init),
    ):
        assert "other was prepared with another tokenizer" in refused(*arguments)
    assert contents(copy) == before


def test_the_first_known_tokenizer_is_kept(copy: Path, tokenizer: Tokenizer) -> None:
    shutil.copytree(copy / "corpus", copy / "old")
    without_fingerprint(copy / "old")
    write_recipe(copy / "r.toml", tokenizer, steps=2)
    init = ("--init", copy / "run" / "best.pt")
    for folder, arguments in (
        ("run", train(copy, "old", "old")),
        ("begun", (*train(copy, "old", "old")[:-1], copy / "begun", *init)),
        ("new", (*train(copy, "old", "corpus")[:-1], copy / "new")),
    ):
        done = CliRunner().invoke(offline, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
        for name in ("last.pt", "best.pt"):
            state = checkpoint.load(copy / folder / name)
            assert state["tokenizer"] == tokenizer.fingerprint
    done = CliRunner().invoke(offline, [str(one) for one in train(copy, "old", "old")])
    assert done.exit_code == 0, done.output


def test_another_tokenizer_than_the_models_is_refused(copy: Path, tokenizer: Tokenizer) -> None:
    other_tokenizer(tokenizer).save(copy / "other.json")
    (copy / "words.txt").write_text(" = A = \n")
    best, words = copy / "run" / "best.pt", copy / "words.txt"
    for arguments in (
        ("ptb", best, words, "--tokenizer", copy / "other.json"),
        ("wikitext", best, "--tokenizer", copy / "other.json", "--scored", words, "--full", words),
        ("export", best, "--tokenizer", copy / "other.json", "--out", copy / "b"),
    ):
        assert "other.json is another tokenizer than that of" in refused(*arguments)


def test_a_checkpoint_of_before_fingerprints_is_taken(copy: Path) -> None:
    best = copy / "run" / "best.pt"
    state = checkpoint.load(best)
    assert state.pop("tokenizer") == Corpus(copy / "corpus").tokenizer
    checkpoint.save(best, state)
    facts = json.loads((copy / "corpus" / "corpus.json").read_text())
    del facts["tokenizer"]
    (copy / "corpus" / "corpus.json").write_text(json.dumps(facts))
    done = CliRunner().invoke(offline, ["evaluate", str(best), str(copy / "corpus")])
    assert done.exit_code == 0, done.output


def test_a_tokenizer_of_another_size_is_refused_in_evaluations(
    copy: Path, tiny_model: GCNN
) -> None:
    prepare(["a b"], train_bpe(["a b"], 300), copy / "small")
    with pytest.raises(ValueError, match="small was prepared with a tokenizer of 259 tokens"):
        evaluate(tiny_model, Corpus(copy / "small"))


def test_a_start_symbol_that_is_another_symbol_is_refused(copy: Path, tokenizer: Tokenizer) -> None:
    write_recipe(copy / "r.toml", tokenizer, start_id=7)
    shutil.rmtree(copy / "run")
    line = refused(*train(copy))
    assert "start_id is 7, but the documents of" in line
    assert "corpus begin with the token 0" in line
    write_recipe(copy / "r.toml", tokenizer, start_id=tokenizer.size)
    assert f"r.toml: start_id is {tokenizer.size}, beyond the {tokenizer.size} tokens" in refused(
        *train(copy)
    )
    assert not (copy / "run").exists()


def test_a_run_does_not_go_on_with_another_start_symbol(copy: Path, tokenizer: Tokenizer) -> None:
    path = copy / "corpus" / "tokens.bin"
    tokens = np.fromfile(path, np.uint16)
    tokens[tokens == tokenizer.start_id] = tokenizer.end_id
    tokens.tofile(path)
    write_recipe(copy / "r.toml", tokenizer, start_id=tokenizer.end_id)
    assert "run has a run of another model" in refused(*train(copy))


def changed(**fields: object) -> Callable[[Path], None]:
    """Changes fields of a checkpoint; a field that becomes None is left out."""

    def change(path: Path) -> None:
        state = torch.load(path, weights_only=True) | fields
        torch.save({name: value for name, value in state.items() if value is not None}, path)

    return change


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


CHECKPOINT_DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello"),
    "a list": lambda path: torch.save([1, 2], path),
    "weights alone": lambda path: torch.save({"weight": torch.zeros(3)}, path),
    "other weights": changed(model={"weight": torch.zeros(3)}),
    "no step": changed(step=None),
    "a configuration that is none": changed(config="{}"),
    "a configuration that is no text": changed(config=3),
    "a configuration of another version": changed(config='{"model": {"vocabulary": 9}}'),
}


@pytest.mark.parametrize("damage", CHECKPOINT_DAMAGES)
def test_a_checkpoint_of_another_kind_is_named_and_kept(copy: Path, damage: str) -> None:
    last, best = copy / "run" / "last.pt", copy / "run" / "best.pt"
    for path in (last, best):
        CHECKPOINT_DAMAGES[damage](path)
    before = contents(copy)
    tokenizer = ("--tokenizer", copy / "tokenizer.json")
    for path, arguments in (
        (last, train(copy)),
        (best, ("evaluate", best, copy / "corpus")),
        (best, ("export", best, *tokenizer, "--out", copy / "b")),
        (best, (*train(copy)[:-1], copy / "new", "--init", best)),
    ):
        assert str(path) in refused(*arguments)
    assert contents(copy) == before


@pytest.mark.parametrize("field", ["optimizers", "best", "rate"])
def test_a_checkpoint_that_lacks_what_going_on_takes_is_refused(copy: Path, field: str) -> None:
    changed(**{field: None})(copy / "run" / "last.pt")
    assert "run" in refused(*train(copy))
    changed(**{field: "x"})(copy / "run" / "last.pt")
    assert "last.pt does not have" in refused(*train(copy))
    changed(optimizers=[{"state": {}, "param_groups": []}])(copy / "run" / "last.pt")
    assert "last.pt" in refused(*train(copy))


def test_a_line_of_metrics_that_was_torn_is_cut_off(copy: Path, tokenizer: Tokenizer) -> None:
    path = copy / "run" / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 1, "tok')
    write_recipe(copy / "r.toml", tokenizer, steps=2)
    corpus = Corpus(copy / "corpus")
    Trainer(RunConfig.read(copy / "r.toml"), corpus, corpus, copy / "run").run()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_two_commands_do_not_train_in_one_folder(copy: Path, tokenizer: Tokenizer) -> None:
    write_recipe(copy / "r.toml", tokenizer, steps=2)
    corpus = Corpus(copy / "corpus")
    first = Trainer(RunConfig.read(copy / "r.toml"), corpus, corpus, copy / "run")
    before = contents(copy)
    advance = first.advance

    def advance_beside_another() -> float:
        line = refused(*train(copy))
        assert "metrics.jsonl: another command is writing it" in line
        assert contents(copy) == before
        return advance()

    first.advance = advance_beside_another  # type: ignore[method-assign]
    first.run()
    assert checkpoint.load(copy / "run" / "last.pt")["step"] == 2


def test_nothing_of_another_kind_is_written_over(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ngram, "_tool", lambda name: name)
    (copy / "a.txt").write_text("the cat sat\n" * 50)
    (copy / "bundle").mkdir()
    (copy / "bundle" / "checksums.json").write_text("{}")
    text, tokenizer, best = copy / "a.txt", copy / "tokenizer.json", copy / "run" / "best.pt"
    made = ("prepare", text, "--tokenizer", tokenizer, "--out")
    new_run = train(copy)[:-1]
    learned = ("tokenizer", text, "--size", 300, "--out")
    before = contents(copy)
    for arguments, words in (
        ((*made, copy / "run"), "run holds a training run; choose another folder"),
        ((*made, copy / "bundle"), "bundle holds a bundle; choose another folder"),
        ((*made, text), "a.txt is a file; choose a folder"),
        ((*new_run, copy / "corpus"), "corpus holds a prepared corpus; choose another folder"),
        ((*new_run, copy / "bundle"), "bundle holds a bundle"),
        ((*new_run, text), "a.txt is a file"),
        ((*learned, text), "a.txt exists and is not a tokenizer"),
        ((*learned, copy / "run"), "run exists and is not a tokenizer"),
        ((*learned, best), "best.pt exists and is not a tokenizer"),
        (("wikitext-prose", text, "--fill", tokenizer.with_name("r.toml"), "--out", text), "a.txt"),
        (("wikitext-prose", copy / "r.toml", "--fill", text, "--out", text), "a.txt is an input"),
        (("ngram-train", text, "--out", copy / "run"), "run holds a training run"),
        (("export", best, "--tokenizer", tokenizer, "--out", copy / "run"), "run holds a training"),
    ):
        assert words in refused(*arguments)
    assert contents(copy) == before


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond so many bytes within the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_line_and_leaves_what_was_there(
    copy: Path, tokenizer: Tokenizer
) -> None:
    (copy / "a.txt").write_text("the cat sat on the mat\n" * 2000)
    write_recipe(copy / "r.toml", tokenizer, steps=2)
    text, corpus = copy / "a.txt", ("--tokenizer", copy / "tokenizer.json", "--out")
    fill = ("--fill", copy / "r.toml", "--out")
    before = contents(copy)
    for arguments, name in (
        (("tokenizer", text, "--out", copy / "new.json"), "new.json"),
        (("tokenizer", text, "--out", copy / "tokenizer.json"), "tokenizer.json"),
        (("prepare", text, *corpus, copy / "corpus"), "corpus"),
        (("prepare", text, *corpus, copy / "new"), "new"),
        (("wikitext-prose", text, *fill, copy / "new.txt"), "new.txt"),
        (train(copy), "run/best.pt"),
        (("export", copy / "run" / "best.pt", *corpus, copy / "b"), "/b"),
    ):
        with full_disk(6000):
            line = refused(*arguments)
        assert f"{copy / name}" in line or name in line
        assert "File too large" in line
        assert contents(copy) == before
        assert not list(copy.rglob("*.partial"))
    assert not (copy / "new").exists()


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path, link = tmp_path / "a", tmp_path / "link"
    path.write_bytes(b"before")
    link.symlink_to(path)
    with suppress(KeyboardInterrupt), outputs.atomic_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert contents(tmp_path) == {"a": b"before", "link": b"before"}
    with outputs.atomic_file(link) as file:
        file.write(b"after")
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"after"
    assert link.is_symlink()


@pytest.mark.parametrize("command", ["tokenizer", "wikitext-prose"])
def test_a_users_file_beside_a_single_output_is_kept(tmp_path: Path, command: str) -> None:
    (tmp_path / "a.txt").write_text("the cat sat\n")
    (tmp_path / "b.txt").write_text("the dog ran\n")
    (tmp_path / "out.partial").write_text("mine")
    options = {"tokenizer": ["--size", "300"], "wikitext-prose": ["--fill", tmp_path / "b.txt"]}
    arguments = [command, tmp_path / "a.txt", "--out", tmp_path / "out", *options[command]]
    done = CliRunner().invoke(offline, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    assert set(contents(tmp_path)) == {"a.txt", "b.txt", "out", "out.partial"}
    assert (tmp_path / "out.partial").read_text() == "mine"


def test_two_commands_do_not_prepare_into_one_folder(copy: Path, tokenizer: Tokenizer) -> None:
    (copy / "a.txt").write_text("the cat sat\n")
    other = ("prepare", copy / "a.txt", "--tokenizer", copy / "tokenizer.json", "--out")

    def documents(folder: Path) -> Iterator[str]:
        yield texts.ALL[0]
        before = contents(folder)
        assert "another command is writing it" in refused(*other, folder)
        assert contents(folder) == before
        yield texts.ALL[1]

    for name in ("corpus", "new"):
        counts = prepare(documents(copy / name), tokenizer, copy / name)
        assert counts == Corpus(copy / name).counts
        assert not list(copy.rglob("*.partial"))


def test_what_a_kill_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "a.partial").write_bytes(b"what a killed command wrote")
    with outputs.atomic_file(tmp_path / "a", exclusive=True) as file:
        file.write(b"after")
    assert contents(tmp_path) == {"a": b"after"}


def test_a_file_that_was_put_in_place_while_it_was_opened_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = outputs.lock
    (tmp_path / "a.partial").write_bytes(b"another command's")

    def late(file: IO[bytes], path: Path) -> None:
        if not path.exists():  # the other one finishes first
            (tmp_path / "a.partial").rename(path)
        lock(file, path)

    monkeypatch.setattr(outputs, "lock", late)
    with outputs.atomic_file(tmp_path / "a", exclusive=True) as file:
        assert (tmp_path / "a").read_bytes() == b"another command's"
        file.write(b"after")
    assert contents(tmp_path) == {"a": b"after"}


def test_a_pipe_or_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the cat sat\n")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="pipe is not a regular file"):
        outputs.atomic_file(tmp_path / "pipe").__enter__()
    learned = ("tokenizer", tmp_path / "a.txt", "--size", 300, "--out", tmp_path / "pipe")
    assert "pipe exists and is not a tokenizer" in refused(*learned)
    assert (tmp_path / "pipe").is_fifo()


def test_an_empty_file_and_a_tokenizer_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the cat sat\n")
    (tmp_path / "t.json").touch()
    arguments = ["tokenizer", tmp_path / "a.txt", "--size", "300", "--out", tmp_path / "t.json"]
    for _ in range(2):
        done = CliRunner().invoke(offline, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
        Tokenizer.load(tmp_path / "t.json")


def test_a_loss_that_no_float_holds_the_perplexity_of_is_printed(copy: Path) -> None:
    best = copy / "run" / "best.pt"
    state = checkpoint.load(best)
    state["model"]["output.bias"][3] = 1e6
    checkpoint.save(best, state)
    done = CliRunner().invoke(offline, ["evaluate", str(best), str(copy / "corpus")])
    assert done.exit_code == 0, done.output
    assert "\nperplexity: beyond any float\n" in done.output


def test_a_corpus_that_is_made_again_is_the_one_before_until_it_is_whole(
    copy: Path, tokenizer: Tokenizer
) -> None:
    before = contents(copy / "corpus")

    def broken() -> Iterator[str]:
        yield "the first document"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(broken(), tokenizer, copy / "corpus")
    assert contents(copy / "corpus") == before
    with pytest.raises(ValueError, match="no document"):
        prepare(read_documents([]), tokenizer, copy / "new")
    assert not (copy / "new").exists()
    prepare(["the first document"], tokenizer, copy / "corpus")
    assert Corpus(copy / "corpus").counts.documents == 1


@pytest.mark.parametrize(
    "model",
    [
        {"type": "Unigram", "unk_id": 0, "vocab": [[START, 0.0], [END, 0.0], ["a", -1.0]]},
        {"type": "WordPiece", "unk_token": START, "vocab": {START: 0, END: 1, "a": 2}},
        {"type": "BPE", "vocab": {START: 0, END: 1, "\u2581a": 2}, "merges": []},
        {"type": "WordLevel", "unk_token": START, "vocab": {START: 0, END: 1, "a": 2}},
        {"type": "BPE", "vocab": {"a": 0}, "merges": []},
    ],
    ids=["Unigram", "WordPiece", "no bytes", "no unknown word", "no symbols"],
)
def test_a_tokenizer_of_another_kind_is_named(tmp_path: Path, model: dict[str, object]) -> None:
    common = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": []}
    none = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder"))
    fields = {"WordPiece": {"continuing_subword_prefix": "##", "max_input_chars_per_word": 9}}
    path = tmp_path / "t.json"
    path.write_text(
        json.dumps(common | none | {"model": model | fields.get(str(model["type"]), {})})
    )
    (tmp_path / "a.txt").write_text("a\n")
    line = refused("prepare", tmp_path / "a.txt", "--tokenizer", path, "--out", tmp_path / "c")
    assert "t.json is no tokenizer for this: " in line
    assert not (tmp_path / "c").exists()


def test_a_comparison_of_gates_names_the_line_that_is_no_run(copy: Path) -> None:
    (copy / "gates").mkdir()
    (copy / "gates" / "gates.jsonl").write_text('{"config": "{}"}\n')
    corpora = ("--train", copy / "corpus", "--valid", copy / "corpus")
    line = refused("report", "gates", *corpora, "--out", copy / "gates", "--only-tables")
    assert "gates.jsonl: line 1 is not a run" in line
    (copy / "gates" / "gates.jsonl").write_text('{"config": "{}", "poi')  # a kill tore it
    options = ["--out", copy / "gates", "--only-tables"]
    arguments = ["report", "gates", *corpora, *options]
    done = CliRunner().invoke(offline, [str(argument) for argument in arguments])
    assert "is not a run" not in done.stderr
    assert (copy / "gates" / "gates.jsonl").read_text() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_report_that_cannot_be_printed_is_one_line() -> None:
    command = [sys.executable, "-m", "app.cli", "describe", "model/recipes/gcnn-8.toml"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "convlm: standard output: No space left on device\n"


def test_a_broken_model_of_kenlm_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def model(path: str) -> None:
        raise OSError(f"Cannot read model '{path}' (lm/binary_format.cc:160 in void\nand so on)")

    (tmp_path / "model.bin").write_bytes(b"")
    (tmp_path / "vocabulary.txt").write_text("the\n")
    monkeypatch.setitem(sys.modules, "kenlm", SimpleNamespace(Model=model))
    line = refused("ngram-evaluate", tmp_path, "--scored", tmp_path / "a", "--full", tmp_path / "b")
    assert "model.bin is not a model of KenLM: Cannot read" in line


def test_a_bundle_of_another_tokenizer_is_no_beginning(
    copy: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model, _, _ = checkpoint.load_model(copy / "run" / "best.pt")
    assert isinstance(model, GCNN)
    export(model, other_tokenizer(tokenizer), tmp_path / "b", "b")
    line = refused(*train(copy)[:-1], tmp_path / "new", "--init", tmp_path / "b")
    assert "corpus was prepared with another tokenizer" in line
