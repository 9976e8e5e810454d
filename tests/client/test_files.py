"""What is read of a file of lines: all of it, as what it is, or a message that names it."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import zstandard

from app.client import blimp, files, lambada
from app.client.errors import ClientError
from app.client.files import LineError, Source

ROOT = Path(__file__).parents[2]
RAW = b"".join(b"line %d, of %d\n" % (n, n * 7919 % 1000) for n in range(20_000))
PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
}
SKIPPED = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
"""A frame of zstd's that holds nothing, as pzstd writes it."""
OBJECT = '{"text": "The cat sat.", "url": "http://example.org/a"}\n'


def written(folder: Path, name: str, raw: bytes | str) -> Source:
    """A file of these bytes."""
    (folder / name).write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    return Source(str(folder / name))


def content(source: Source) -> bytes:
    """All lines."""
    return b"\n".join(source.lines()) + b"\n"


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("name", ["a{}", "A.TXT{}", "a.txt", "no suffix"])
def test_how_a_file_is_packed_is_told_from_its_content(
    tmp_path: Path, suffix: str, name: str
) -> None:
    source = written(tmp_path, name.format(suffix.upper()), PACK[suffix](RAW))
    assert content(source) == RAW
    assert source.position == source.size


@pytest.mark.parametrize("suffix", PACK)
def test_a_packed_file_of_several_streams_is_read_to_its_end(tmp_path: Path, suffix: str) -> None:
    some = [RAW[begin : begin + 5000] for begin in range(0, len(RAW), 5000)]
    packed = b"".join(map(PACK[suffix], some))
    assert content(written(tmp_path, f"a{suffix}", packed)) == RAW
    padded = PACK[suffix](RAW[:1000]) + bytes(512) + PACK[suffix](RAW[1000:]) + bytes(4096)
    assert content(written(tmp_path, f"a{suffix}", padded)) == RAW


def test_a_frame_with_the_largest_window_is_read(tmp_path: Path) -> None:
    window = bytes([31 - 10 << 3])  # of 2**31 bytes, as `zstd --long=31` makes it
    raw_block = (len(OBJECT) << 3 | 1).to_bytes(3, "little") + OBJECT.encode()
    packed = b"\x28\xb5\x2f\xfd\0" + window + raw_block
    assert content(written(tmp_path, "a.jsonl.zst", packed)) == OBJECT.encode()


def test_streams_may_end_where_a_part_does(tmp_path: Path) -> None:
    one = zstandard.compress(b"a\n" * 10)
    # a frame that is skipped fills up each part that is read
    fill = 4096 - len(one) - 8
    filled = one + b"\x50\x2a\x4d\x18" + fill.to_bytes(4, "little") + bytes(fill)
    assert len(filled) == 4096
    assert content(written(tmp_path, "a.zst", filled * 40)) == b"a\n" * 400
    assert content(written(tmp_path, "b.zst", SKIPPED + one)) == b"a\n" * 10


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("damage", ["empty", "a byte", "half", "last byte", "a flip", "junk"])
def test_a_packed_file_that_is_damaged_or_cut_off_is_named(
    tmp_path: Path, suffix: str, damage: str
) -> None:
    compress = PACK[suffix]
    if suffix == ".zst":  # as `zstd` packs: with a checksum
        compress = zstandard.ZstdCompressor(write_checksum=True).compress
    packed = bytearray(compress(RAW))
    middle = len(packed) // 2
    if damage == "a flip":
        packed[middle] ^= 255
    damaged = {
        "empty": b"",
        "a byte": packed[:1],
        "half": packed[:middle],
        "last byte": packed[:-1],
        "a flip": packed,
        "junk": packed + b"this is no stream, though it is long enough for one",
    }[damage]
    source = written(tmp_path, f"a{suffix}", bytes(damaged))
    with pytest.raises(ClientError) as caught:
        list(source.lines())
    message = str(caught.value)
    assert message.startswith(f"{source.name}: ")
    assert "\n" not in message
    for read in (blimp.read, lambada.read):
        with pytest.raises(ClientError, match=re.escape(source.name)):
            read(Path(source.name))


def test_a_name_that_says_packed_is_not_believed(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match=r"a\.txt\.gz: its name ends in \.gz"):
        list(written(tmp_path, "a.txt.gz", "plain text\n").lines())


def test_without_its_package_zst_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ClientError, match=r"a\.zst: .*needs the package zstandard"):
        list(written(tmp_path, "a.zst", zstandard.compress(RAW)).lines())


@pytest.mark.parametrize("name", ["a.json", "a.JSON.gz", "A.JSONL", "a.jsonl.GZ", "a.NdJson.Zst"])
def test_lines_of_json_are_known_by_names_in_any_case(tmp_path: Path, name: str) -> None:
    suffix = Path(name).suffix.lower()
    source = written(tmp_path, name, PACK.get(suffix, bytes)(OBJECT.encode()))
    assert source.json
    assert content(source) == OBJECT.encode()


@pytest.mark.parametrize(
    "raw",
    [
        '{\n "text": "a"\n}\n',
        '[{"text": "a"}]\n',
        '[\n{"text": "a"},\n{"text": "b"}\n]\n',
        "plain text\n",
        '[{"text": "' + "long " * 20_000 + '"}]',
    ],
)
def test_a_json_document_that_is_no_lines_is_refused(tmp_path: Path, raw: str) -> None:
    with pytest.raises(ClientError, match=r"a\.json: .*no JSON object on its first line"):
        list(written(tmp_path, "a.json", raw).lines())


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-16-le"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.xz"])
def test_utf16_is_refused(tmp_path: Path, encoding: str, name: str) -> None:
    raw = OBJECT.encode(encoding)
    if encoding == "utf-16-be":
        raw = b"\xfe\xff" + raw  # with its mark
    source = written(tmp_path, name, lzma.compress(raw) if name.endswith("xz") else raw)
    for one in (source, Source(source.name, json=False), Source(source.name, json=True)):
        with pytest.raises(ClientError, match=re.escape(name) + ": it is .*UTF-16"):
            list(one.lines())


def archive(kind: str) -> bytes:
    """An archive of one text."""
    file = io.BytesIO()
    if kind == "zip":
        import zipfile

        with zipfile.ZipFile(file, "w") as packed:
            packed.writestr("a.txt", "some text\n")
    else:
        import tarfile

        with tarfile.open(fileobj=file, mode=kind) as tar:
            entry = tarfile.TarInfo("a.txt")
            entry.size = 100_000
            tar.addfile(entry, io.BytesIO(b"some text\n" * 10_000))
    return file.getvalue()


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (archive("zip"), "ZIP"),
        (archive("w:"), "tar"),
        (archive("w:gz"), "tar"),
        (gzip.compress(gzip.compress(RAW)), "packed twice"),
        (b"PAR1" + b"\x15\x04" * 100, "Parquet"),
        (b"\x7fELF\0\0\0\1" * 100, "binary"),
    ],
)
def test_what_cannot_be_text_is_refused_whatever_it_is_called(
    tmp_path: Path, raw: bytes, what: str
) -> None:
    with pytest.raises(ClientError, match=what):
        list(Source(written(tmp_path, "a.txt", raw).name, json=False).lines())


OTHER = {
    "objects": OBJECT * 3,
    "one object": OBJECT,
    "a byte order mark": "\ufeff" + OBJECT,
    "NaN": '{"text": "a", "score": NaN}\n' * 3,
    "one bad line of many": OBJECT * 5 + "{torn\n" + OBJECT,
    "a long line": json.dumps({"text": "long " * 30_000}) + "\n",
    "lists": '["a", "some text"]\n["b", "more"]\n',
    "a document": json.dumps([{"text": "a"}, {"text": "b"}], indent=1),
    "a long document": json.dumps([{"text": "a" * 100}] * 5000, indent=1),
    "objects over many lines": json.dumps({"id": 1, "text": "The cat sat."}, indent=2) * 3,
    "a long text over many lines": json.dumps({"text": "long " * 30_000}, indent=2),
    "a document that is cut off": '[{"text": "a"}, {"te',
    "a list that is cut off in a text": '{\n  "data": [\n    {"text": "The ca',
    "a number that begins": '{\n  "id": 17,\n  "text": "a",\n}\n',
    "a comma before the end": '[\n  {"text": "a"},\n  {"text": "b"},\n]\n',
    "strings with a comma before the end": '[\n  "It ran.",\n  "A \\"cat\\"",\n]\n',
    "strings that are cut off": '["It ran.", "The ca',
    "many strings": json.dumps(['It said "yes".'] * 9000, indent=2),
    "many strings on a line": json.dumps(["It ran."] * 9000),
    "lists in a list": json.dumps([["a", "It ran."]] * 3, indent=2),
    "columns": 'id,text\n1,"The cat, which sat."\n2,It ran.\n',
    "columns of Excel's": "id;text\n1;The cat, which sat.\n2;It ran.\n",
    "columns of pandas": ",Review (text),label\n0,The cat sat.,1\n1,It ran.,0\n",
    "columns in another script": "n\u00famero,\u0442\u0435\u043a\u0441\u0442\n1,a\n2,b\n",
    "long columns": "id,text\n" + "".join(f"{n},text {n}\n" for n in range(9000)),
    "tabs": "1\tThe cat sat.\n2\tIt ran.\n",
    "tabs and an empty cell": "id\ttext\tlabel\n1\tThe cat.\tgood\n2\tIt ran.\t\n",
    "tabs of pandas": "\ttext\tlabel\n0\tThe cat.\tgood\n1\tIt ran.\tbad\n",
    "tabs and Windows' line ends": "id\ttext\tlabel\r\n1\tIt ran.\t\r\n",
    "columns after spaces": "id, text\n1, The cat sat.\n2, It ran.\n",
    "columns after spaces, quoted": 'text, label\n"The cat, which sat.", 1\n"No, no.", 0\n',
    "XML": '<?xml version="1.0"?>\n<a>text</a>\n',
    "HTML": "<!DOCTYPE html>\n<p>text\n",
    "HTML that does not say so": '\n<html lang="en">\n<p>text\n',
}


@pytest.mark.parametrize("kind", OTHER)
def test_what_looks_like_something_else_is_refused_if_nobody_says_that_it_is_text(
    tmp_path: Path, kind: str
) -> None:
    source = written(tmp_path, "a.txt", OTHER[kind])
    with pytest.raises(ClientError, match=r"a\.txt: it looks like .*, not lines of text"):
        list(source.lines())
    told = content(Source(source.name, json=False))
    assert told.strip() == OTHER[kind].removeprefix("\ufeff").encode().strip()


@pytest.mark.parametrize("name", ["a.csv", "a.TSV", "a.csv.gz"])
def test_a_table_is_known_by_its_name(tmp_path: Path, name: str) -> None:
    raw = b"Any text.\n"
    source = written(tmp_path, name, gzip.compress(raw) if name.endswith("gz") else raw)
    with pytest.raises(ClientError, match=r"it looks like a table.*if it is.*as lines"):
        list(source.lines())
    assert content(Source(source.name, json=False)) == raw


TEXTS = [
    "{curly} text\n{more} of it\n",
    '{"quoted": a text that goes on\n',
    '{"a": 1}\nis how JSON begins.\nIt ends otherwise.\n',
    '{"who": he asked}\n"Nobody," she said.\n',
    '{"now": 3 people} came\n',
    '{"Oh": "dear" she said}\n',
    '["Oh dear!"] is what she said,\n["no"] he did.\n',
    '["Oh dear!", she said] and went\n',
    '["Oh dear!\nI shall be late!"]\n',
    "Hello, world.\nOne, two.\n",
    "Yes,sir\nNo,sir\nThree bags full\n",
    "Yes, sir\nNo, sir\n",
    "indented\t\nthe same\t\n",
    "<htmlish> text\n",
    "Roses are red,\nviolets are blue,\n",
    "Yes, Sir,No\nBut, why,not\n",
    '"Oh dear!"\n"I shall be late!"\n',
    "[1]\n",
    "[Music]\n[Applause]\n",
    "{}\n",
    "\tindented\n\tthe same\n",
    "one\ttab\nnone\n",
    "1,000 people\n2,000 people\n",
    "a\n",
    "\n\n",
    "",
    "a stray \0 in a line that is long enough for it: " + "text " * 40 + "\n",
    "<p>a paragraph</p>\n",
    "BZh is how bzip2 begins, PK how ZIP does\n",
]


@pytest.mark.parametrize("raw", TEXTS)
def test_text_is_not_taken_for_something_else(tmp_path: Path, raw: str) -> None:
    assert b"\n".join(written(tmp_path, "a.txt", raw).lines()) == raw.encode().removesuffix(b"\n")


def test_the_tests_texts_are_text() -> None:
    for path in (ROOT / "tests" / "data").glob("*.txt"):
        assert content(Source(str(path))).strip() == path.read_bytes().strip()


def test_a_line_of_many_parts_is_one_line(tmp_path: Path) -> None:
    raw = b"x" * 3_000_000 + b"\n" + b"y" * 70_000 + b"\n\nz"
    source = written(tmp_path, "a.gz", gzip.compress(raw))
    assert [len(line) for line in source.lines()] == [3_000_000, 70_000, 0, 1]


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = [sys.executable, "-c", "import sys; open(sys.argv[1], 'wb').write(b'a\\n' * 90_000)"]
    with subprocess.Popen([*writer, str(tmp_path / "pipe")]):
        source = Source(str(tmp_path / "pipe"))
        source.check([])
        assert source.size is None
        assert sum(1 for _ in source.lines()) == 90_000
        assert source.position == 180_000


def test_a_file_is_known_under_its_other_names(tmp_path: Path) -> None:
    source = written(tmp_path, "a.jsonl", OBJECT)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.jsonl").symlink_to("a.jsonl")
    os.link(source.name, tmp_path / "hard.jsonl")
    others = ["a.jsonl", "link.jsonl", "hard.jsonl", "folder/../a.jsonl"]
    for name in others:
        with pytest.raises(ClientError, match="written over"):
            source.check([tmp_path / "none", tmp_path / name])
    with (tmp_path / "hard.jsonl").open("ab") as file, pytest.raises(ClientError, match="over"):
        source.check([file.fileno()])
    source.check([tmp_path / "none"])


@pytest.mark.parametrize(
    ("line", "custom_id"),
    [
        ('{"id": "n1", "text": null}', "n1"),
        ('{"id": "n2"}', "n2"),
        ('{"id": "n3", "text": "\\ud800"}', "n3"),
        ('{"id": "n4", "text": "a", "score": NaN}', "n4"),
        ('{"id": 12345678901234567890123, "text": 3}', "12345678901234567890123"),
        ('{"text": ', None),
        ("[" * 100_000, None),
    ],
)
def test_a_line_that_cannot_be_scored_keeps_its_id(line: str, custom_id: str | None) -> None:
    with pytest.raises(LineError) as caught:
        files.text_in(line.encode(), "text")
    assert caught.value.custom_id == custom_id


@pytest.mark.parametrize(
    ("ids", "custom_id"),
    [
        ('"custom_id": null, "id": "n3"', "n3"),
        ('"custom_id": "", "id": "n3"', ""),
        ('"custom_id": null', None),
        ('"id": 7', "7"),
        ('"id": 7.50', "7.50"),
        ('"id": 1e40', "1e40"),
        ('"id": -12345678901234567890123', "-12345678901234567890123"),
        ('"id": 18446744073709551615', "18446744073709551615"),
        ('"id": true', "true"),
        ('"id": {"$oid": "é"}', '{"$oid": "é"}'),
        ('"id": "' + "x" * 600 + '"', "x" * 600),
    ],
)
def test_an_id_comes_back_as_it_is_written(ids: str, custom_id: str | None) -> None:
    line = f'{{{ids}, "text": "ok"}}'.encode()
    assert files.text_in(line, "text") == ("ok", custom_id)


def test_a_field_of_a_table_with_a_carriage_return_reads_back(tmp_path: Path) -> None:
    from app.client import rows

    names = ["a\rb", "a\r", "\r\n", "a\nb", 'a"\r', "plain"]
    made = tmp_path / "rows"
    made.write_text("".join(json.dumps({"custom_id": name}) + "\n" for name in names))
    rows.convert(made, tmp_path / "a.csv", ".csv", {"index": "int64", "custom_id": "string"})
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        assert [row["custom_id"] for row in csv.DictReader(file)] == names
    raw = (tmp_path / "a.csv").read_bytes()
    assert raw.startswith(b"index,custom_id\n,")
    assert raw.endswith(b"\n,plain\n")


def test_evaluations_read_what_a_file_holds(tmp_path: Path) -> None:
    passage = b'{"text": "a natural text"}\n'
    for name, pack in {"a.JSONL": bytes, "a.jsonl.gz": gzip.compress, "a.json": bytes}.items():
        source = written(tmp_path, name, pack(passage))
        assert lambada.read(Path(source.name)) == [lambada.Passage("a natural text", 10)]
    with pytest.raises(ClientError, match=r"a\.txt: it looks like JSON.*\.jsonl"):
        lambada.read(Path(written(tmp_path, "a.txt", passage).name))
    with pytest.raises(ClientError, match=r"b\.txt, line 2: not UTF-8"):
        lambada.read(Path(written(tmp_path, "b.txt", b"two words\ncaf\xe9 au lait\n").name))


def test_a_standard_input_that_is_closed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ClientError, match="standard input: it is closed"):
        list(Source("-").lines())
    Source("-").check([1])


def test_lines_of_json_on_standard_input_are_not_scored_as_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for json_is_told in (None, True, False):
        stdin = SimpleNamespace(buffer=io.BytesIO(gzip.compress(OBJECT.encode())))
        monkeypatch.setattr(sys, "stdin", stdin)
        source = Source("-", json=json_is_told, advice="; do this")
        if json_is_told is None:
            with pytest.raises(ClientError, match=r"standard input: it looks like JSON.*; do"):
                list(source.lines())
        else:
            assert content(source) == OBJECT.encode()
