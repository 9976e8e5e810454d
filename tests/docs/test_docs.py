"""The documents name what there is: settings, routes, commands, targets, files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.models import CommandInfo

from app.cli.main import cli
from app.main import create_app
from app.settings import Settings
from model.cli.main import offline

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND_TABLE = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")

_FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`[^`\n]+`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def rows(document: Path) -> list[list[str]]:
    """The cells of every table row of a document."""
    lines = document.read_text(encoding="utf-8").splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("|")
    ]


def code(text: str) -> str:
    """Code blocks and inline code alone."""
    blocks = _FENCED.findall(text)
    return "\n".join([*blocks, *_INLINE.findall(_FENCED.sub("", text))])


def anchors(document: Path) -> set[str]:
    """Anchors of a document's headings, as GitHub makes them."""
    text = _FENCED.sub("", document.read_text(encoding="utf-8"))
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in _HEADING.findall(text)
    }


def name_of(command: CommandInfo) -> str:
    """What is typed for a command."""
    assert command.callback is not None
    return command.name or command.callback.__name__.replace("_", "-")


SETTINGS = {
    row[0].strip("`"): row
    for row in rows(ROOT / "docs" / "reference" / "settings.md")
    if row[0].startswith("`CONVLM_")
}
COMMANDS = sorted({name_of(c) for c in [*cli.registered_commands, *offline.registered_commands]})
SCHEMA = create_app(Settings()).openapi()
ROUTES = [
    f"{method.upper()} {path}" for path, methods in SCHEMA["paths"].items() for method in methods
]
FIELDS = sorted(
    {
        field
        for body in SCHEMA["components"]["schemas"].values()
        for field in body.get("properties", ())
    }
)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented_with_its_default(name: str) -> None:
    row = SETTINGS.get(f"CONVLM_{name.upper()}")
    assert row is not None, f"CONVLM_{name.upper()} is not in docs/reference/settings.md"
    default = Settings.model_fields[name].default
    if isinstance(default, Path):
        default = default.relative_to(ROOT).as_posix()
    assert row[1] == ("unset" if default in (None, "") else f"`{default}`")
    assert row[2], "a setting needs its meaning"


def test_no_setting_is_documented_that_there_is_not() -> None:
    assert set(SETTINGS) == {f"CONVLM_{name.upper()}" for name in Settings.model_fields}


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_is_in_the_api_reference(route: str) -> None:
    text = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    assert f"`{route}`" in text


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_of_a_body_is_in_the_api_reference(field: str) -> None:
    text = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    assert re.search(rf'[`.]{field}[`\[]|"{field}"', text)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_in_the_table_of_commands(name: str) -> None:
    assert re.search(rf"^\| `convlm {name}` \| `convlm {name} ", COMMAND_TABLE, re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.relative_to(ROOT).as_posix())
def test_every_make_target_in_a_document_exists(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", code(document.read_text(encoding="utf-8"))))
    assert named <= targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    text = _INLINE.sub("", _FENCED.sub("", document.read_text(encoding="utf-8")))
    for link in _LINK.findall(text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize(
    "document", [d for d in DOCUMENTS if "history" not in d.parts], ids=lambda d: d.name
)
def test_every_path_in_a_document_exists(document: Path) -> None:
    text = _FENCED.sub("", document.read_text(encoding="utf-8"))
    paths = re.findall(r"`((?:app|model|tests|docs)/[\w./-]*)`", text)
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_the_worked_example_of_the_flat_batch_is_what_the_planner_gives() -> None:
    text = (ROOT / "docs" / "reference" / "flat-batch.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {}
    exec(example, names)  # the document's own code
    batch = names["batch"]
    table = [row for row in rows(ROOT / "docs" / "reference" / "flat-batch.md") if row[0].isdigit()]
    assert [int(row[1]) for row in table] == batch.tokens.tolist()
    (addresses,) = batch.addresses
    assert [[int(n) for n in row[2].split(",")] for row in table] == addresses.taps.tolist()
    for values in (
        f"| `read_slots` | {_listed(addresses.read_slots)} |",
        f"| `write_slots` | {_listed(addresses.write_slots)} |",
        f"| `carry` | {' / '.join(_listed(row) for row in addresses.carry)} |",
        f"{_listed(batch.score_rows)} and {_listed(batch.targets)} |",
        f"| `next_rows` | {_listed(batch.next_rows)} |",
    ):
        assert values in text


def _listed(values: object) -> str:
    return ", ".join(str(value) for value in values)
