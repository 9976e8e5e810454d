"""Text files: packed, damaged, with Windows' line ends, and files that hold something else."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from model.architecture.gcnn import GCNN
from model.baselines import ngram
from model.cli.main import offline
from model.core.tokenizer import Tokenizer
from model.data import text_files
from model.data.corpus import Corpus, prepare, read_documents
from model.evaluation import ptb, wikitext
from tests import texts
from tests.commands import refused

RAW = "".join(f"Line {n} says {n * 7919 % 1000}.\n" for n in range(3000)).encode()
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    ".bz2": bz2.compress,
}
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda packed: packed[: len(packed) // 2],
    "without its last byte": lambda packed: packed[:-1],
    "with a changed byte": lambda packed: (
        packed[: len(packed) // 2]
        + bytes([packed[len(packed) // 2] ^ 255])
        + packed[len(packed) // 2 + 1 :]
    ),
    "with another end": lambda packed: packed + b"and more",
    "not packed": lambda _: b"not packed\n",
    "empty": lambda _: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("suffix", PACKERS)
def test_a_damaged_packed_file_is_named_and_not_taken_for_whole(
    tmp_path: Path, suffix: str, damage: str
) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(DAMAGES[damage](PACKERS[suffix](RAW)))
    with pytest.raises(ValueError, match=rf"a\.txt{suffix}: it(s name|.is damaged|.ends early)"):
        list(read_documents([path]))


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_packed_file_of_several_parts_is_read_to_its_end(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACKERS[suffix](b"first\nsec") + PACKERS[suffix](b"ond\n" + RAW))
    (text,) = read_documents([path])
    assert text == (b"first\nsecond\n" + RAW).decode().removesuffix("\n")


@pytest.mark.parametrize("suffix", [".GZ", ".Xz", ".ZST", ".BZ2"])
def test_the_case_of_a_name_does_not_matter(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"A.TXT{suffix}"
    path.write_bytes(PACKERS[suffix.lower()](b"first\n"))
    assert list(read_documents([path])) == ["first"]


def test_every_command_refuses_half_a_file(
    tmp_path: Path, tokenizer: Tokenizer, tiny_model: GCNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut, whole = tmp_path / "cut.txt.zst", tmp_path / "whole.txt"
    cut.write_bytes(DAMAGES["cut"](PACKERS[".zst"](RAW)))
    whole.write_bytes(RAW)
    tokenizer.save(tmp_path / "tokenizer.json")
    out = tmp_path / "out"
    for kind in ("bpe", "word"):
        line = refused("tokenizer", cut, "--out", out, "--size", 300, "--kind", kind)
        assert "cut.txt.zst" in line
    assert "cut.txt.zst" in refused(
        "prepare", cut, "--tokenizer", tmp_path / "tokenizer.json", "--out", out
    )
    assert "cut.txt.zst" in refused("wikitext-prose", cut, "--fill", whole, "--out", out)
    assert "cut.txt.zst" in refused("wikitext-prose", whole, "--fill", cut, "--out", out)
    monkeypatch.setattr(ngram, "_tool", lambda name: name)
    assert "cut.txt.zst" in refused("ngram-train", cut, "--out", tmp_path / "ngram")
    assert not out.exists()
    for call in (
        lambda: wikitext.evaluate(tiny_model, tokenizer, cut, cut),
        lambda: ptb.evaluate(tiny_model, tokenizer, cut),
        lambda: ngram.read_vocabulary(cut),
    ):
        with pytest.raises(ValueError, match=r"cut\.txt\.zst: it ends early"):
            call()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16_is_refused_in_one_line(tmp_path: Path, encoding: str) -> None:
    path, packed = tmp_path / "a.txt", tmp_path / "b.txt.xz"
    path.write_text("the cat\nsat", encoding=encoding)
    packed.write_bytes(lzma.compress(path.read_bytes()))
    for file in (path, packed):
        with pytest.raises(ValueError, match=rf"{file.name}: it is .*UTF-16"):
            list(read_documents([file]))


@pytest.mark.parametrize("begin", ["\n", "\n" + "the cat " * 20000])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_utf_16_with_a_blank_first_line_is_refused(
    tmp_path: Path, encoding: str, begin: str
) -> None:
    (tmp_path / "a.txt").write_text(f"{begin}the cat\nsat", encoding=encoding)
    with pytest.raises(ValueError, match=r"a\.txt: it is .*UTF-16"):
        list(read_documents([tmp_path / "a.txt"]))


def test_a_stray_zero_byte_is_the_texts_own(tmp_path: Path) -> None:
    text = "the c\0at\n" + "sat\n" * 100
    (tmp_path / "a.txt").write_text(text)
    assert list(read_documents([tmp_path / "a.txt"])) == [text.removesuffix("\n")]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.csv", "a table"),
        ("a.TSV.gz", "a table"),
        ("a.xml", "XML"),
        ("a.html", "HTML"),
    ],
)
def test_tables_and_markup_are_not_learned_as_text(tmp_path: Path, name: str, form: str) -> None:
    raw = b"text\nThe cat sat.\n"
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    line = refused("tokenizer", tmp_path / name, "--out", tmp_path / "t.json", "--size", 300)
    assert f"{name} is {form} by its name; write its texts" in line
    assert not (tmp_path / "t.json").exists()


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "A.NDJSON", "a.json.gz", "a.JSONL.GZ"])
def test_json_is_not_learned_as_text(tmp_path: Path, name: str) -> None:
    raw = b'{"text": "The cat sat."}\n'
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.lower().endswith("gz") else raw)
    line = refused("tokenizer", tmp_path / name, "--out", tmp_path / "t.json", "--size", 300)
    assert f"{name} is JSON" in line
    assert not (tmp_path / "t.json").exists()


def test_json_in_the_middle_of_a_name_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.json.txt").write_text("The cat sat.\n")
    assert list(read_documents([tmp_path / "a.json.txt"])) == ["The cat sat."]


@given(
    text=st.text(st.sampled_from("ab\r\n\u00e9\ufeff\u2028"), max_size=40),
    part=st.integers(1, 5),
    mark=st.booleans(),
)
def test_lines_are_those_of_the_whole_text_without_their_ends(
    tmp_path_factory: pytest.TempPathFactory, text: str, part: int, mark: bool
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.txt"
    path.write_bytes(("\ufeff" * mark + text).encode())
    *expected, last = path.read_bytes().decode().split("\n")
    expected += [last] if last else []
    expected = [line.removesuffix("\r") for line in expected]
    expected[:1] = [line.removeprefix("\ufeff") for line in expected[:1]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "_PART_BYTES", part)
        assert list(text_files.lines(path)) == expected


def test_a_byte_order_mark_and_crlf_are_not_learned(tmp_path: Path, tokenizer: Tokenizer) -> None:
    unix = "%%DOC\nthe cat\rsat\n\nthe dog ran\n%%DOC\n\n%%DOC\nthe end\n"
    windows = "\ufeff" + unix.replace("\n", "\r\n")
    for marker, each_line in (("%%DOC", False), (None, True), (None, False)):
        found = []
        for name, text in (("unix", unix), ("windows", windows)):
            (tmp_path / name).write_bytes(text.encode())
            documents = list(read_documents([tmp_path / name], marker, each_line=each_line))
            prepare(documents, tokenizer, tmp_path / f"{name}-corpus")
            found.append((documents, Corpus(tmp_path / f"{name}-corpus").tokens.tolist()))
        assert found[0] == found[1]
        assert any("the cat\rsat" in document for document in found[0][0])
    marked = list(read_documents([tmp_path / "windows"], "%%DOC"))
    assert marked == ["the cat\rsat\n\nthe dog ran", "the end"]


def test_evaluations_read_crlf_as_lf(
    tmp_path: Path, tokenizer: Tokenizer, tiny_model: GCNN
) -> None:
    article = " = Alice = \n \n Alice was tired . \n"
    for name, text in (("unix", article), ("windows", "\ufeff" + article.replace("\n", "\r\n"))):
        (tmp_path / name).write_bytes(text.encode())
        (tmp_path / f"{name}-words").write_bytes(text.replace(" ", "\n").encode())
    unix, windows = tmp_path / "unix", tmp_path / "windows"
    words = [ngram.read_vocabulary(tmp_path / f"{name}-words") for name in ("unix", "windows")]
    assert words[0] == words[1] == {"=", "Alice", "was", "tired", "."}
    for evaluate in (
        lambda path: wikitext.evaluate(tiny_model, tokenizer, path, path, vocabulary=words[0]),
        lambda path: ptb.evaluate(tiny_model, tokenizer, path),
    ):
        assert evaluate(unix) == evaluate(windows)


def test_wikitext_files_that_end_apart_are_named(
    tmp_path: Path, tokenizer: Tokenizer, tiny_model: GCNN
) -> None:
    (tmp_path / "two").write_text(" = A = \n b \n")
    (tmp_path / "full").write_text(" = A = \n")
    (tmp_path / "none").write_text("")
    with pytest.raises(ValueError, match=r"two and .*full: line 2: one of the two files ends"):
        wikitext.evaluate(tiny_model, tokenizer, tmp_path / "two", tmp_path / "full")
    with pytest.raises(ValueError, match="none has no lines"):
        wikitext.evaluate(tiny_model, tokenizer, tmp_path / "none", tmp_path / "none")


def test_the_line_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\nthr\xffee\nfour\n")
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8: line 3"):
        list(read_documents([tmp_path / "a.txt"]))


def test_a_pipe_is_not_read_twice(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # would be waited for for ever, or be empty
    for arguments in (
        ("tokenizer", tmp_path / "pipe", "--out", tmp_path / "t.json"),
        ("wikitext-prose", tmp_path / "pipe", "--fill", tmp_path / "f", "--out", tmp_path / "t"),
    ):
        assert "pipe is not a regular file" in refused(*arguments)


def test_a_tokenizer_is_not_made_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n")
    for kind in ("bpe", "word"):
        line = refused(
            "tokenizer", tmp_path / "a.txt", "--out", tmp_path / "t.json", "--kind", kind
        )
        assert "a.txt: there is no text" in line


def test_a_folder_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        list(read_documents([tmp_path]))


def test_a_recipe_from_windows_is_read(tmp_path: Path) -> None:
    text = Path("model/recipes/gcnn-8.toml").read_text().replace("\n", "\r\n")
    (tmp_path / "r.toml").write_bytes(b"\xef\xbb\xbf" + text.encode())
    done = CliRunner().invoke(offline, ["describe", str(tmp_path / "r.toml")])
    assert done.exit_code == 0, done.output
    (tmp_path / "r.toml").write_text("[other]\n")
    assert "r.toml: model: " in refused("describe", tmp_path / "r.toml")
    (tmp_path / "r.toml").write_bytes(b"\xff[model]\n")
    assert "r.toml is not UTF-8" in refused("describe", tmp_path / "r.toml")


def test_text_is_kept_as_it_was(tmp_path: Path) -> None:
    for number, text in enumerate(texts.ALL):
        (tmp_path / f"{number}").write_bytes(text.encode())
    found = list(read_documents(sorted(tmp_path.iterdir())))
    assert found == [text.replace("\r\n", "\n") for text in texts.ALL]
