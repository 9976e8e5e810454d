"""Bundles whose files are what their checksums say, and wrong all the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.catalog.catalog import Catalog
from app.metrics import Metrics
from app.settings import Settings
from model.architecture.gcnn import GCNN
from model.core import bundle
from model.core.bundle import BundleError
from model.core.config import Block, ModelConfig
from model.core.tokenizer import Tokenizer
from model.export.bundle_writer import export
from model.training import restore


@pytest.fixture(scope="module")
def whole(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle in float32 and float16."""
    torch.manual_seed(1)
    config = ModelConfig(vocabulary=tokenizer.size, embedding=8, blocks=(Block(layers=((2, 8),)),))
    folder = tmp_path_factory.mktemp("bundles") / "small"
    export(GCNN(config, tokenizer.start_id).eval(), tokenizer, folder, "small")
    return folder


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to spoil."""
    return Path(shutil.copytree(whole, tmp_path / "small"))


def sign(folder: Path) -> None:
    """Makes the checksums right."""
    names = json.loads((folder / bundle.CHECKSUMS).read_text())
    sums = {name: bundle._digest(folder / name) for name in names}
    (folder / bundle.CHECKSUMS).write_text(json.dumps(sums))


def with_config(**fields: object) -> Callable[[str], str]:
    return lambda raw: json.dumps(json.loads(raw) | fields)


def with_text(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    """Changes the first golden text."""

    def changed(raw: str) -> str:
        texts = json.loads(raw)
        change(texts[0])
        return json.dumps(texts)

    return changed


WRONG: list[tuple[str, str, Callable[[str], str]]] = [
    (bundle.CONFIG, "a list", lambda _: "[]"),
    (bundle.CONFIG, "text", lambda _: "hello"),
    (bundle.CONFIG, "empty", lambda _: ""),
    (bundle.CONFIG, "deep", lambda _: "[" * 100_000),
    (bundle.CONFIG, "Latin-1", lambda _: "\udce9"),
    (bundle.CONFIG, "a strange field", with_config(strange=1)),
    (bundle.CONFIG, "no architecture", with_config(model=[])),
    (bundle.CONFIG, "an architecture that cannot be", with_config(model={"vocabulary": -1})),
    (bundle.CONFIG, "a start symbol beyond", with_config(start_id=10**30)),
    (bundle.GOLDEN, "empty", lambda _: ""),
    (bundle.GOLDEN, "no text", lambda _: "[]"),
    (bundle.GOLDEN, "an object", lambda _: "{}"),
    (bundle.GOLDEN, "a list of lists", lambda _: "[[]]"),
    (bundle.GOLDEN, "text", lambda _: "hello"),
    (bundle.GOLDEN, "no ids", with_text(lambda text: text.pop("ids"))),
    (bundle.GOLDEN, "one id", with_text(lambda text: text.update(ids=[0], logprobs=[]))),
    (bundle.GOLDEN, "words for ids", with_text(lambda text: text.update(ids=["a"]))),
    (bundle.GOLDEN, "an id beyond", with_text(lambda text: text["ids"].append(400))),
    (bundle.GOLDEN, "an id below", with_text(lambda text: text["ids"].__setitem__(1, -1))),
    (bundle.GOLDEN, "no start", with_text(lambda text: text["ids"].__setitem__(0, 5))),
    (bundle.GOLDEN, "too few scores", with_text(lambda text: text["logprobs"].pop())),
    (
        bundle.GOLDEN,
        "a score that is no number",
        with_text(lambda text: text["logprobs"].__setitem__(0, float("nan"))),
    ),
    (bundle.GOLDEN, "scores of no graph", with_text(lambda text: text.update(int8=[-1.0]))),
    (bundle.TOKENIZER, "empty", lambda _: ""),
    (bundle.TOKENIZER, "a list", lambda _: "[]"),
    (bundle.TOKENIZER, "cut", lambda raw: raw[:1000]),
    (bundle.TOKENIZER, "another kind", lambda raw: raw.replace('"BPE"', '"Unigram"')),
    (bundle.CHECKSUMS, "a list of names", lambda raw: json.dumps(list(json.loads(raw)))),
    (bundle.CHECKSUMS, "numbers", lambda raw: json.dumps(dict.fromkeys(json.loads(raw), 1))),
    (bundle.CHECKSUMS, "text", lambda _: "hello"),
    (
        bundle.CHECKSUMS,
        "a file elsewhere",
        lambda raw: json.dumps(json.loads(raw) | {"../other": "0"}),
    ),
]


@pytest.mark.parametrize(("name", "what", "change"), WRONG, ids=[f"{n} {w}" for n, w, _ in WRONG])
def test_a_wrong_file_is_named_with_its_bundle_in_one_line(
    copied: Path, name: str, what: str, change: Callable[[str], str]
) -> None:
    path = copied / name
    path.write_text(change(path.read_text()), errors="surrogateescape")
    if name != bundle.CHECKSUMS:
        sign(copied)
    with pytest.raises(BundleError) as caught:
        bundle.load(copied)
    said = str(caught.value)
    assert str(copied) in said
    assert name in said
    assert "\n" not in said
    assert len(said.replace(str(copied), "")) < 250


def test_a_bundle_that_is_right_loads(copied: Path) -> None:
    sign(copied)
    assert len(bundle.load(copied).golden) == 3


@pytest.mark.parametrize("name", [bundle.CONFIG, bundle.CHECKSUMS, bundle.TOKENIZER])
def test_a_file_that_may_not_be_read_is_named(
    copied: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:  # root may read everything
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BundleError, match=f"small cannot be read: {name}: Permission denied"):
        bundle.load(copied)


def test_a_folder_in_the_place_of_a_file_is_named(copied: Path) -> None:
    (copied / bundle.GRAPH).unlink()
    (copied / bundle.GRAPH).mkdir()
    with pytest.raises(BundleError, match=rf"small: {bundle.GRAPH} is missing"):
        bundle.load(copied)


def test_weights_that_are_none_are_named(copied: Path) -> None:
    (copied / bundle.GRAPH).write_bytes(b"hello")
    sign(copied)
    with pytest.raises(BundleError, match=rf"small: {bundle.GRAPH} does not hold"):
        restore.load(copied)


def test_what_lies_beside_a_bundle_is_not_removed(
    copied: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    def fill(folder: Path) -> None:
        (folder / "new").write_text("new")

    (copied / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds 'notes\.txt' besides a bundle"):
        bundle.write(copied, fill)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / bundle.CHECKSUMS).write_text("of something else")
    with pytest.raises(FileExistsError, match="other"):
        bundle.write(tmp_path / "other", fill)
    assert bundle.load(copied).config.name == "small"
    (copied / "notes.txt").unlink()
    link = tmp_path / "link"
    link.symlink_to(copied)
    bundle.write(link, fill)
    assert link.is_symlink()
    assert sorted(path.name for path in copied.iterdir()) == [bundle.CHECKSUMS, "new"]


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("which", [0, 1])
def test_an_interrupt_while_a_bundle_is_replaced_leaves_one_that_is_whole(
    copied: Path, monkeypatch: pytest.MonkeyPatch, which: int, moment: str
) -> None:
    rename = Path.rename
    calls: list[Path] = []

    def interrupted(path: Path, target: Path) -> None:
        calls.append(target)
        if moment == "after" or len(calls) != which + 1:
            rename(path, target)
        if len(calls) == which + 1:
            raise KeyboardInterrupt

    before = sorted(path.name for path in copied.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bundle.write(copied, lambda folder: (folder / "new").touch())
    after = sorted(path.name for path in copied.iterdir())
    done = (which, moment) == (1, "after")
    assert after == ([bundle.CHECKSUMS, "new"] if done else before)
    assert [path.name for path in copied.parent.iterdir()] == ["small"]


@pytest.mark.parametrize("reload_seconds", [0, 60])
def test_the_server_says_what_is_wrong_with_the_bundle(copied: Path, reload_seconds: int) -> None:
    (copied / bundle.GOLDEN).write_text("[]")
    sign(copied)
    settings = Settings(bundle=copied, device="cpu", reload_seconds=reload_seconds)
    catalog = Catalog(settings, Metrics())
    with pytest.raises(BundleError, match=rf"corrupt bundle {copied}: {bundle.GOLDEN}: "):
        catalog.load()
    catalog.close()
