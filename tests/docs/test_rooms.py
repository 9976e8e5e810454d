"""The map in CONTRIBUTING names the rooms of the code and what each may import."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from tests.docs.measures import PACKAGES, ROOT, Code

_HEADING = "| room | what it holds | may import |"
_CELL = re.compile(r"`([^`]+)`")
CODE = Code.read(ROOT)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the map. A room is a folder, or a file that has a row of its own."""

    rooms: list[str]
    holds: str
    may_import: set[str]


def table(text: str) -> list[Row]:
    """The rows of all tables with the map's heading, in their order."""
    rows = []
    inside = False
    for line in text.splitlines():
        inside = line == _HEADING or (inside and line.startswith("|"))
        if inside and line.startswith("| `"):
            rooms, holds, imports = line.strip("|").split("|")
            rows.append(Row(_CELL.findall(rooms), holds.strip(), set(_CELL.findall(imports))))
    return rows


MAP = table((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
NAMED = [room for row in MAP for room in row.rooms]
MAY_IMPORT = {room: row.may_import for row in MAP for room in row.rooms}


def room_of(module: str) -> str:
    """The room of a module. Files beside the folders of app/ and model/ are rooms, too."""
    path = CODE.files[module].relative_to(ROOT)
    folder = path.parent.as_posix()
    alone = folder in PACKAGES or path.as_posix() in MAY_IMPORT
    return path.as_posix() if alone else folder


ROOMS = {room_of(module) for module in CODE.files} - {f"{name}/__init__.py" for name in PACKAGES}


def test_the_map_names_every_room_once_and_no_other() -> None:
    assert sorted(NAMED) == sorted(ROOMS)
    assert all(row.holds for row in MAP)


@pytest.mark.parametrize("room", NAMED)
def test_a_room_imports_only_rooms_that_the_map_permits(room: str) -> None:
    permitted = {room, *MAY_IMPORT[room], *PACKAGES}
    forbidden = [
        f"{module} imports {name}"
        for module in CODE.files
        if room_of(module) == room
        for name in sorted(CODE.imports(module, lazy=True))
        if name not in PACKAGES and room_of(name) not in permitted
    ]
    assert not forbidden, forbidden


@pytest.mark.parametrize("room", NAMED)
def test_the_map_permits_only_what_a_room_imports(room: str) -> None:
    modules = [module for module in CODE.files if room_of(module) == room]
    imported = {room_of(name) for m in modules for name in CODE.imports(m, lazy=True)}
    assert imported >= MAY_IMPORT[room], "a permission that nothing needs"


def test_rooms_import_rooms_below_them_in_the_map() -> None:
    for index, row in enumerate(MAP):
        below = {room for other in MAP[index + 1 :] for room in other.rooms}
        assert row.may_import <= below, row.rooms
