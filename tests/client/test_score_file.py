"""Files of lines to files of rows, whole after any interruption."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import lzma
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zstandard
from typer.testing import CliRunner

from app.cli.main import cli
from app.client import files, rows
from app.client.async_client import AsyncClient
from app.client.errors import ClientError
from app.client.files import Source
from app.client.partial import Partial, Read
from app.client.score_file import score_to_file
from app.wire.score import Measures
from tests import texts
from tests.api.conftest import PATIENCE_SECONDS, Server, eventually

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]
LINES = [line for text in texts.ALL for line in text.split("\n") if line.strip()]


async def scored(server: Server, source: Path, out: Path, **changed: Any) -> list[dict[str, Any]]:
    """The rows of a file that is scored into another, which ends in .jsonl."""
    options = {"field": None, "options": {"detail": "totals"}} | changed
    async with AsyncClient(server.url) as client:
        await score_to_file(client, Source(str(source)), out=out, **options)
    return [json.loads(line) for line in out.read_bytes().splitlines()]


async def test_each_line_has_its_row_and_bad_ones_an_error(server: Server, tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_bytes("Alice was\r\n\n  \nzwei é\u2028\n".encode() + b"\xff\xfe\nlast")
    found = await scored(server, source, tmp_path / "a.jsonl")
    assert [row["index"] for row in found] == [0, 3, 4, 5]
    assert found[2]["error"].startswith("text must be UTF-8")
    for row, text in ((found[0], "Alice was"), (found[1], "zwei é\u2028"), (found[3], "last")):
        (alone,) = server.ask("/v1/score", input=text, detail="totals")["data"]
        assert row == {**alone, "index": row["index"], "custom_id": None}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "a.txt"]


async def test_lines_of_json_have_their_text_in_a_field(server: Server, tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl.gz"
    lines = [
        {"text": "Alice", "id": 7},
        {"text": "", "custom_id": "empty"},
        {"text": 3},
        {"words": "a"},
    ]
    raw = "\n".join(json.dumps(line) for line in lines) + "\n[1]\n{\n"
    source.write_bytes(gzip.compress(raw.encode()))
    assert Source(str(source)).json
    found = await scored(server, source, tmp_path / "out.jsonl", field="text")
    assert [row["index"] for row in found] == list(range(6))
    assert found[0]["custom_id"] == "7"
    assert found[0]["token_count"] > 0
    assert found[1]["custom_id"] == "empty"
    assert "an empty text" in found[1]["error"]
    assert all("'text'" in row["error"] for row in found[2:5])
    assert "not JSON" in found[5]["error"]


def test_packed_files_are_read_in_parts(tmp_path: Path) -> None:
    raw = b"".join(b"line %d of many\n" % n for n in range(50_000))
    packed = {
        "a.txt": raw,
        "a.gz": gzip.compress(raw[:1000]) + gzip.compress(raw[1000:]),
        "a.xz": lzma.compress(raw[:1000]) + lzma.compress(raw[1000:]),
        "a.zst": zstandard.compress(raw[:1000]) + zstandard.compress(raw[1000:]),
    }
    for name, content in packed.items():
        (tmp_path / name).write_bytes(content)
        source = Source(str(tmp_path / name))
        assert b"\n".join(source.lines()) + b"\n" == raw
        assert source.position == source.size == len(content)


@pytest.mark.parametrize("name", ["a.gz", "a.xz", "a.zst", "none.txt", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    whole = {"a.gz": gzip.compress, "a.xz": lzma.compress, "a.zst": zstandard.compress}
    if name in whole:
        (tmp_path / name).write_bytes(whole[name](b"some text" * 100)[:-5])
    with pytest.raises(ClientError, match=re.escape(str(tmp_path / name))):
        list(Source(str(tmp_path / name)).lines())


async def test_csv_holds_the_same(server: Server, tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "Alice", "id": "a,\\n\\"b"}\n{"text": ""}\n', encoding="utf-8")
    options = {"field": "text", "options": {"detail": "tokens"}}
    whole = await scored(server, source, tmp_path / "out.jsonl", **options)
    async with AsyncClient(server.url) as client:
        await score_to_file(client, Source(str(source)), out=tmp_path / "out.csv", **options)
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        good, bad = csv.DictReader(file)
    assert good["custom_id"] == 'a,\n"b'
    assert float(good["logprob_sum"]) == whole[0]["logprob_sum"]
    assert json.loads(good["logprobs"]) == whole[0]["logprobs"]
    assert json.loads(good["tokens"]) == ["Alice"]
    assert bad["error"] == whole[1]["error"]
    assert bad["token_count"] == ""


async def test_parquet_holds_the_same(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(rows, "_ROWS_AT_ONCE", 7)
    source = tmp_path / "a.txt"
    source.write_text("\n".join(LINES * 4), encoding="utf-8")
    options = {"options": {"detail": "tokens"}}
    whole = await scored(server, source, tmp_path / "out.jsonl", **options)
    async with AsyncClient(server.url) as client:
        out = tmp_path / "out.parquet"
        await score_to_file(client, Source(str(source)), None, options["options"], out)
    table = parquet.read_table(out).to_pylist()
    assert len(table) == len(whole)
    for row, expected in zip(table, whole, strict=True):
        assert row["error"] is None
        assert row["tokens"] == expected["tokens"]
        assert row["offsets"] == expected["offsets"]
        assert row["perplexity"] == expected["perplexity"]
        assert row["logprobs"] == pytest.approx(expected["logprobs"], rel=1e-7)


async def test_words_have_their_surprisal_in_every_kind_of_file(
    server: Server, tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    source = tmp_path / "a.txt"
    source.write_text("\n".join(LINES[:3]), encoding="utf-8")
    options = {"detail": "totals", "words": True}
    found = await scored(server, source, tmp_path / "out.jsonl", options=options)
    for row in found:
        assert "tokens" not in row
        surprisals = sum(word["surprisal"] for word in row["words"])
        assert surprisals == pytest.approx(-row["logprob_sum"], rel=1e-5)
    async with AsyncClient(server.url) as client:
        for name in ("out.csv", "out.parquet"):
            await score_to_file(client, Source(str(source)), None, options, tmp_path / name)
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        assert [json.loads(row["words"]) for row in csv.DictReader(file)] == [
            row["words"] for row in found
        ]
    table = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["words"] for row in table] == [row["words"] for row in found]


def test_parquet_without_its_package_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ClientError, match="pip install pyarrow"):
        rows.check(Path("a.parquet"))
    with pytest.raises(ClientError, match=r"\.jsonl, \.csv or \.parquet"):
        rows.check(Path("a.txt"))


@pytest.mark.parametrize("torn", range(0, 60, 7))
def test_a_row_that_was_not_wholly_written_is_cut_off(tmp_path: Path, torn: int) -> None:
    out = tmp_path / "out.jsonl"
    with Partial(out, {"a": 1}) as partial:
        for index in range(0, 10, 2):
            partial.write({"index": index, "text": "é" * 10})
        partial.flush(Read(9, ""))
    path = tmp_path / "out.jsonl.partial"
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) - torn])
    lines = path.read_bytes().count(b"\n")
    with Partial(out, {"a": 1}) as partial:
        assert partial.next_index == (2 * lines - 1 if lines else 0)
        for index in range(2 * lines, 10, 2):
            partial.write({"index": index, "text": "é" * 10})
        partial.finish({})
    assert out.read_bytes() == raw


@pytest.mark.parametrize("flushed", range(4))
def test_rows_of_which_the_lines_are_not_known_are_cut_off(tmp_path: Path, flushed: int) -> None:
    out = tmp_path / "out.jsonl"
    with Partial(out, {}) as partial:
        for index in range(3):
            partial.write({"index": index, "text": "a" * 20_000})
            if index + 1 == flushed:
                partial.flush(Read(flushed, ""))
    kept = tmp_path / "out.jsonl.partial"
    assert kept.read_bytes().count(b"\n") == 3  # as if the process was killed there
    with Partial(out, {}) as partial:
        assert partial.next_index == flushed
        assert kept.read_bytes().count(b"\n") == flushed


def test_rows_of_a_version_that_did_not_count_their_bytes_are_kept_if_lines_are_known(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out.jsonl"
    facts = tmp_path / "out.jsonl.partial.json"
    for read, next_index in (({"lines": 5, "sha256": ""}, 3), (None, 0)):
        (tmp_path / "out.jsonl.partial").write_bytes(b'{"index":0}\n{"index":2}\n')
        facts.write_text(json.dumps({"read": read}))
        with Partial(out, {}) as partial:
            assert partial.next_index == next_index


async def test_after_a_kill_before_the_first_digest_no_row_of_a_changed_line_is_kept(
    server: Server, tmp_path: Path
) -> None:
    source, out = tmp_path / "a.txt", tmp_path / "out.jsonl"
    source.write_text("\n".join(LINES[:6]), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:  # rows reach the disk, what they are made of not
        patch.setattr(Partial, "flush", lambda self, read: self._file.flush())
        patch.setattr(Partial, "finish", lambda self, columns: None)
        async with AsyncClient(server.url) as client:
            await score_to_file(client, Source(str(source)), None, {"detail": "totals"}, out)
    assert (tmp_path / "out.jsonl.partial").read_bytes().count(b"\n") == 6
    source.write_text("\n".join(LINES[6:12]), encoding="utf-8")
    await scored(server, source, out)
    await scored(server, source, tmp_path / "whole.jsonl")
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_file_is_not_gone_on_with_by_other_means(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with Partial(out, {"options": {"context": "a"}}):
        pass
    with (
        pytest.raises(ClientError, match=r"was begun with options .*'a'.*--restart"),
        Partial(out, {"options": {"context": "b"}}),
    ):
        pass
    with Partial(out, {"options": {"context": "b"}}, restart=True) as partial:
        partial.finish({})
    with pytest.raises(ClientError, match="exists"), Partial(out, {"options": {"context": "b"}}):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_two_commands_do_not_write_one_file(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    for restart in (False, True):
        with Partial(out, {}, restart=restart) as first:
            first.write({"index": 0})
            for again in (False, True):
                second = Partial(out, {}, restart=again)
                with pytest.raises(ClientError, match="another command is writing it"), second:
                    pass
            first.finish({})
        assert out.read_bytes() == b'{"index":0}\n'
    with Partial(out, {}, restart=True):
        pass


@pytest.mark.parametrize("changed", ["an edited line", "fewer lines", "a name"])
async def test_a_run_goes_on_with_the_lines_that_it_was_begun_with(
    server: Server, tmp_path: Path, changed: str
) -> None:
    source, out = tmp_path / "a.txt", tmp_path / "out.jsonl"
    lines = LINES[:6]
    source.write_text("\n".join(lines), encoding="utf-8")
    await scored(server, source, tmp_path / "whole.jsonl")
    source.write_text("\n".join(lines[:4]), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:  # as a run that was interrupted behind four lines
        patch.setattr(Partial, "finish", lambda self, columns: None)
        async with AsyncClient(server.url) as client:
            options = {"detail": "totals"}
            await score_to_file(client, Source(str(source)), None, options, out)
    if changed == "a name":
        source = source.rename(tmp_path / "b.txt")
        source.write_text("\n".join(lines), encoding="utf-8")
        await scored(server, source, out)
        assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
        return
    other = lines[:3] if changed == "fewer lines" else [lines[0], lines[1][::-1], *lines[2:]]
    source.write_text("\n".join(other), encoding="utf-8")
    with pytest.raises(ClientError, match=r"its first 4 lines are not those .*--restart"):
        await scored(server, source, out)
    assert len((tmp_path / "out.jsonl.partial").read_bytes().splitlines()) == 4


async def test_a_byte_order_mark_is_no_text(server: Server, tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    found = []
    for mark in (b"", b"\xef\xbb\xbf"):
        source.write_bytes(mark + b"Alice was\r\nAlice")
        found.append(await scored(server, source, tmp_path / f"{len(mark)}.jsonl"))
    assert found[0] == found[1]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match=r"there is no folder .*none"):
        rows.check(tmp_path / "none" / "a.csv")


def test_a_line_longer_than_a_part_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * 300_000 + b"\ny")
    assert [len(line) for line in Source(str(tmp_path / "a.txt")).lines()] == [300_000, 1]
    assert files.text_of(b"a \r") == "a "


@pytest.mark.parametrize("fault", ["cut off", "a flip"])
async def test_a_packed_file_that_is_damaged_costs_no_row_and_is_gone_on_with_when_it_is_whole(
    server: Server, tmp_path: Path, fault: str
) -> None:
    source, out = tmp_path / "a.txt.gz", tmp_path / "out.jsonl"
    lines = [f"{n} {hashlib.sha512(b'%d' % n).hexdigest()}\n" for n in range(900)]
    raw = "".join(lines).encode()
    packed = gzip.compress(raw)
    damaged = bytearray(packed[:-9] if fault == "cut off" else packed)
    damaged[-6] ^= 255  # of the checksum
    source.write_bytes(damaged)
    with pytest.raises(ClientError, match=r"a\.txt\.gz: it (ends early|is damaged)"):
        await scored(server, source, out)
    assert not out.exists()
    partial = tmp_path / "out.jsonl.partial"
    rows_before = partial.read_bytes().count(b"\n")
    assert rows_before > 0.9 * len(lines)
    source.write_bytes(packed)
    found = await scored(server, source, out)
    assert found == await scored(server, source, tmp_path / "whole.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.txt.gz",
        "out.jsonl",
        "whole.jsonl",
    ]


@pytest.mark.parametrize("raw", [b"", b"no gzip", gzip.compress(b"a\n" * 99)[:-20]])
async def test_of_a_file_that_cannot_be_read_nothing_is_written(
    server: Server, tmp_path: Path, raw: bytes
) -> None:
    source, out = tmp_path / "a.txt.gz", tmp_path / "out.jsonl"
    source.write_bytes(raw)
    with pytest.raises(ClientError, match=r"a\.txt\.gz: "):
        await scored(server, source, out)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt.gz"]


async def test_rows_are_not_begun_anew_for_a_file_that_is_refused(
    server: Server, tmp_path: Path
) -> None:
    source, out = tmp_path / "a.txt", tmp_path / "out.jsonl"
    with Partial(out, {}) as partial:
        partial.write({"index": 0})
    before = [path.read_bytes() for path in Partial.files(out) if path.exists()]
    source.write_bytes("one\ntwo\n".encode("utf-16"))
    with pytest.raises(ClientError, match=r"a\.txt: it is UTF-16"):
        await scored(server, source, out, restart=True)
    assert [path.read_bytes() for path in Partial.files(out) if path.exists()] == before


@pytest.mark.parametrize("end", ["", ".partial", ".partial.json", ".new", ".partial.json.new"])
@pytest.mark.parametrize("restart", [False, True])
async def test_rows_are_not_written_over_their_own_lines(
    server: Server, tmp_path: Path, end: str, restart: bool
) -> None:
    source = tmp_path / f"a.jsonl{end}"
    source.write_text('{"text": "The cat sat."}\n')
    (tmp_path / "link.jsonl").symlink_to("a.jsonl")
    for name in ("a.jsonl", "link.jsonl", "../" + tmp_path.name + "/a.jsonl"):
        with pytest.raises(ClientError, match="its rows would be written over it"):
            await scored(server, source, tmp_path / name, restart=restart)
    assert source.read_text() == '{"text": "The cat sat."}\n'
    assert {path.name for path in tmp_path.iterdir()} == {source.name, "link.jsonl"}


async def test_rows_are_not_written_over_a_link_to_their_lines_or_over_standard_input(
    server: Server, tmp_path: Path
) -> None:
    source = tmp_path / "a.txt"
    source.write_text("The cat sat.\n")
    os.link(source, tmp_path / "hard.jsonl")
    with pytest.raises(ClientError, match="its rows would be written over it"):
        await scored(server, source, tmp_path / "hard.jsonl", restart=True)
    run = [sys.executable, "-m", "app.cli", "score", "--url", server.url]
    with source.open("rb") as stdin, source.open("ab") as stdout:
        for where, taken in (
            (["-", "--out", str(tmp_path / "hard.jsonl"), "--restart"], stdin),
            (["-"], stdin),
            ([str(source)], subprocess.DEVNULL),
        ):
            refused = subprocess.run(
                [*run, *where],
                cwd=ROOT,
                stdin=taken,
                stdout=subprocess.DEVNULL if "--out" in where else stdout,
                stderr=subprocess.PIPE,
            )
            assert refused.returncode == 1
            assert b"its rows would be written over it" in refused.stderr
    assert source.read_text() == "The cat sat.\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "hard.jsonl"]


@pytest.mark.parametrize("there", [False, True])
async def test_an_output_that_is_a_link_stays_one_and_its_target_is_written(
    server: Server, tmp_path: Path, there: bool
) -> None:
    source, link, target = (
        tmp_path / "a.txt",
        tmp_path / "latest.jsonl",
        tmp_path / "runs" / "7.jsonl",
    )
    source.write_text("Alice was\n")
    target.parent.mkdir()
    link.symlink_to(Path("runs") / "7.jsonl")
    if there:
        target.write_text("rows of before\n")
        with pytest.raises(ClientError, match=r"7\.jsonl exists; --restart"):
            await scored(server, source, link)
        assert target.read_text() == "rows of before\n"
    with pytest.MonkeyPatch.context() as patch:  # as a run that was interrupted
        patch.setattr(Partial, "finish", lambda self, columns: None)
        async with AsyncClient(server.url) as client:
            options = {"detail": "totals"}
            lines = Source(str(source))
            await score_to_file(client, lines, None, options, link, restart=there)
    assert Partial.exists(link)
    assert Partial.exists(target)
    (row,) = await scored(server, source, link)
    assert row["token_count"] > 0
    assert link.is_symlink()
    assert not target.is_symlink()
    assert [path.name for path in target.parent.iterdir()] == ["7.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "latest.jsonl", "runs"]


def test_an_output_that_cannot_be_written_is_named_before_any_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").symlink_to(tmp_path / "a.jsonl")
    (tmp_path / "b.csv").symlink_to(tmp_path / "none" / "b.csv")
    (tmp_path / "c.csv").symlink_to(tmp_path / "c.csv")
    (tmp_path / "d.csv").mkdir()
    for name, message in (
        ("a.csv", r"a\.csv is a link to .*a\.jsonl, whose name must end in \.csv"),
        ("b.csv", "there is no folder .*none"),
        ("c.csv", "leads to itself"),
        ("d.csv", "not a regular file"),
    ):
        with pytest.raises(ClientError, match=message):
            rows.check(tmp_path / name)


def test_rows_that_nobody_can_say_anything_about_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    kept = tmp_path / "out.jsonl.partial"
    kept.write_bytes(b"a download of another program\n")
    with (
        pytest.raises(ClientError, match=r"out\.jsonl\.partial exists.*--restart"),
        Partial(out, {}),
    ):
        pass
    assert kept.read_bytes() == b"a download of another program\n"
    with Partial(out, {}, restart=True) as partial:
        partial.write({"index": 0})
        partial.finish({})
    assert out.read_bytes() == b'{"index":0}\n'


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'{"read": 3}',
        b'{"read": {"colour": 1}}',
        b'{"read": null, "rows_bytes": -1}',
        b'{"read": null, "rows_bytes": "0"}',
    ],
)
def test_facts_that_are_damaged_are_named_and_the_rows_kept(tmp_path: Path, raw: bytes) -> None:
    out = tmp_path / "out.jsonl"
    with Partial(out, {}) as partial:
        partial.write({"index": 0})
    facts = tmp_path / "out.jsonl.partial.json"
    facts.write_bytes(raw)
    with pytest.raises(ClientError, match=r"partial\.json is damaged.*--restart"), Partial(out, {}):
        pass
    assert (tmp_path / "out.jsonl.partial").read_bytes() == b'{"index":0}\n'


@pytest.mark.parametrize("last", [b"\0\0\0", b"3", b"{}"])
def test_a_last_row_that_is_damaged_is_named(tmp_path: Path, last: bytes) -> None:
    out = tmp_path / "out.jsonl"
    with Partial(out, {}) as partial:
        for index in range(2):
            partial.write({"index": index})
        partial.flush(Read(2, ""))
    kept = tmp_path / "out.jsonl.partial"
    raw = kept.read_bytes()
    begin = raw.index(b"\n") + 1
    kept.write_bytes(raw[:begin] + last.ljust(len(raw) - begin - 1) + b"\n")
    with pytest.raises(ClientError, match=r"partial is damaged.*--restart"), Partial(out, {}):
        pass


async def test_ids_come_back_with_errors_and_however_long_they_are(
    server: Server, tmp_path: Path
) -> None:
    source = tmp_path / "a.jsonl"
    lines = [
        '{"id": "n1", "text": null}',
        '{"custom_id": null, "id": "n2", "text": "Alice"}',
        '{"id": 12345678901234567890123, "text": "Alice"}',
        '{"id": "' + "x" * 600 + '", "text": "Alice"}',
        '{"id": 7.5, "text": ""}',
    ]
    source.write_text("\n".join(lines))
    found = await scored(server, source, tmp_path / "out.jsonl", field="text")
    names = ["n1", "n2", "12345678901234567890123", "x" * 600, "7.5"]
    assert [row["custom_id"] for row in found] == names
    assert ["error" in row for row in found] == [True, False, False, False, True]


@contextmanager
def started(folder: Path, log: Path, port: int) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`convlm serve` in a process of its own, ready; port 0 takes a free one."""
    command = [sys.executable, "-m", "app.cli", "serve", "--bundle", str(folder)]
    environment = {**os.environ, "CONVLM_THREADS": "1", "CONVLM_PRECISION": "float32"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port)], cwd=ROOT, env=environment, stdout=output, stderr=output
        )
    try:
        address = re.compile(r"Uvicorn running on (http://\S+)")
        eventually(lambda: bool(address.search(log.read_text())), "an address in the log")
        found = address.search(log.read_text())
        assert found is not None
        eventually(lambda: "model loaded" in log.read_text(), "a loaded model")
        yield process, found[1]
    finally:
        process.kill()
        process.wait()


class Exchanged:
    """A client of a server whose model is another from the third answer on."""

    async def score(self, *_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(system_fingerprint="fp_a")

    async def answers(self, lines: Iterable[object], **_: object) -> AsyncGenerator[dict[str, Any]]:
        for index, _ in enumerate(lines):
            fingerprint = "fp_a" if index < 2 else "fp_b"
            data = [{"index": 0, "logprob_sum": -1.0}]
            yield {"index": index, "custom_id": None, "system_fingerprint": fingerprint} | {
                "data": data
            }


async def test_rows_of_two_models_do_not_come_into_one_file(tmp_path: Path) -> None:
    source, out = tmp_path / "a.txt", tmp_path / "a.jsonl"
    source.write_text("one\ntwo\nthree\nfour\n")
    with pytest.raises(ClientError, match="another model now: fp_b, not fp_a"):
        await score_to_file(Exchanged(), Source(str(source)), None, {}, out)  # type: ignore[arg-type]
    assert not out.exists()
    kept = (tmp_path / "a.jsonl.partial").read_bytes().splitlines()
    assert [json.loads(row)["index"] for row in kept] == [0, 1]


def test_tables_have_a_column_for_every_measure() -> None:
    assert Measures.model_fields.keys() <= rows._MEASURES.keys()


def command(source: Path, out: Path, url: str) -> list[str]:
    """`convlm score` with a server."""
    options = ["--out", str(out), "--url", url, "--tries", "2"]
    return [sys.executable, "-m", "app.cli", "score", str(source), *options]


async def test_a_server_that_is_killed_in_the_middle_costs_no_row_and_changes_none(
    server: Server, tiny_folder: Path, tmp_path: Path
) -> None:
    source = tmp_path / "a.txt"
    numbered = (f"{n} {line}" for n, line in enumerate(LINES * 200))
    source.write_text("\n".join(numbered), encoding="utf-8")
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    partial = tmp_path / "out.jsonl.partial"
    with started(tiny_folder, tmp_path / "log", 0) as (killed, url):
        scoring = subprocess.Popen(command(source, out, url), cwd=ROOT, stderr=subprocess.PIPE)
        eventually(lambda: partial.exists() and partial.stat().st_size > 20_000, "some rows")
        killed.kill()
        killed.wait()
        _, message = scoring.communicate(timeout=PATIENCE_SECONDS)
    assert scoring.returncode == 1
    assert b"no answer from" in message
    assert b"Traceback" not in message
    assert not out.exists()
    before = partial.read_bytes()
    assert 0 < before.count(b"\n") < source.read_text(encoding="utf-8").count("\n")
    partial.write_bytes(before + b'{"index":99999,"logp')  # as a machine that loses power leaves it
    with started(tiny_folder, tmp_path / "log", 0) as (killed, url):
        scoring = subprocess.Popen(command(source, out, url), cwd=ROOT, stderr=subprocess.PIPE)
        eventually(lambda: partial.stat().st_size > len(before) + 5_000, "more rows")
        scoring.send_signal(signal.SIGINT)
        _, message = scoring.communicate(timeout=PATIENCE_SECONDS)
        assert scoring.returncode == 130
        assert b"run the same command again" in message
        done = subprocess.run(command(source, out, url), cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
    await scored(server, source, whole)
    assert out.read_bytes() == whole.read_bytes()
    assert out.read_bytes().startswith(before)
    assert not partial.exists()


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_a_command_that_waits_for_standard_input_ends_at_a_signal(
    server: Server, tiny_folder: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out.jsonl"
    where = ["--url", server.url] if name == "SIGINT" else ["--bundle", str(tiny_folder)]
    run = [sys.executable, "-m", "app.cli", "score", "-", "--out", str(out), *where]
    with subprocess.Popen(run, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as scoring:
        eventually(lambda: Partial.exists(out), "a command that reads")
        scoring.send_signal(signal.Signals[name])
        # standard input stays open
        assert scoring.wait(PATIENCE_SECONDS) == (130 if name == "SIGINT" else -signal.SIGHUP)
        assert scoring.stderr is not None
        message = scoring.stderr.read()
    assert b"Traceback" not in message
    assert (b"run the same command again" in message) == (name == "SIGINT")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["score", "a.txt", "--detail", "nothing"], "nothing"),
        (["score", "--text", os.fsdecode(b"a\xff")], "must be UTF-8"),
        (["next", os.fsdecode(b"a\xff")], "must be UTF-8"),
        (["generate", os.fsdecode(b"a\xff")], "must be UTF-8"),
    ],
)
def test_a_wrong_option_is_refused(options: list[str], message: str) -> None:
    refused = CliRunner().invoke(cli, options)
    assert refused.exit_code == 2
    assert message in refused.output


def test_an_unknown_model_is_refused_before_any_line(server: Server, tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("one\ntwo\n")
    run = [sys.executable, "-m", "app.cli", "score", str(source), "--url", server.url]
    refused = subprocess.run([*run, "--model", "nothing"], cwd=ROOT, capture_output=True)
    assert refused.returncode == 1
    assert not refused.stdout
    assert b"there is no model 'nothing'" in refused.stderr


def test_without_a_server_the_command_runs_the_model(
    tiny_folder: Path, server: Server, tmp_path: Path
) -> None:
    source = tmp_path / "a.txt.xz"
    source.write_bytes(lzma.compress("\n".join(LINES).encode()))
    run = [sys.executable, "-m", "app.cli", "score", str(source)]
    environment = {**os.environ, "CONVLM_THREADS": "1", "CONVLM_PRECISION": "float32"}
    outputs = [
        subprocess.run([*run, *last], cwd=ROOT, env=environment, capture_output=True, check=True)
        for last in (["--bundle", str(tiny_folder)], ["--url", server.url])
    ]
    assert outputs[0].stdout == outputs[1].stdout
    assert outputs[0].stdout.count(b"\n") == len(LINES)


async def test_rows_are_lines_to_every_reader(server: Server, tmp_path: Path) -> None:
    source, out = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"id": "a\u2028b\u0085c\u2029d", "text": "A cat"}\n')
    (row,) = await scored(server, source, out, field="text")
    assert row["custom_id"] == "a\u2028b\u0085c\u2029d"
    assert len(out.read_text().splitlines()) == 1
