"""Where bundles lie, and whether their files have changed since they were last looked at."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from app.settings import Settings
from model.core.bundle import CHECKSUMS, CONFIG, NAME, NAME_RULE, BundleError


@dataclass(frozen=True, slots=True)
class Place:
    """A bundle's folder and the model's name. `files`: name, size, time, inode of each file."""

    name: str
    folder: Path
    created: int
    """Unix time of the export, in seconds; 0 if the configuration cannot be read."""
    files: tuple[tuple[str, int, int, int], ...]


class Places:
    """All bundles that the settings name. A model keeps its name while the server runs."""

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.bundles
        own = settings.bundle if settings.bundles is None or settings.names_bundle else None
        self.own = own
        """The bundle that the settings name by itself, if they do; it has the default model."""
        self.own_name = ""
        if own is not None:
            inside = self._folder is not None and own.resolve().parent == self._folder.resolve()
            self.own_name = own.resolve().name if inside else _config(own)[0]

    def find(self, known: Collection[str]) -> dict[str, Place]:
        """All there are by name, the default model's first. Raises BundleError.

        known: names of folders that stay in it even if they have no checksums any more.
        """
        found: dict[str, Place] = {}
        if self.own is not None:
            found[self.own_name] = look(self.own_name, self.own)
        if self._folder is not None:
            try:
                folders = sorted(self._folder.iterdir())
            except OSError as error:
                raise BundleError(f"the folder of bundles cannot be read: {error}") from None
            for folder in folders:
                # exports that are not complete begin with a dot
                if re.fullmatch(NAME, folder.name) and folder.is_dir():
                    place = look(folder.name, folder)
                    if folder.name in known or any(name == CHECKSUMS for name, *_ in place.files):
                        found.setdefault(folder.name, place)
        if not found:
            raise BundleError(
                f"there is no bundle in {self._folder}; their folders' names have only {NAME_RULE}"
            )
        return found


def look(name: str, folder: Path) -> Place:
    """A folder as it is now."""
    files = []
    try:
        for path in sorted(folder.iterdir()):
            facts = path.stat()
            files.append((path.name, facts.st_size, facts.st_mtime_ns, facts.st_ino))
    except OSError:  # it is being replaced, or gone: loading will say so
        files = []
    return Place(name, folder, _config(folder)[1], tuple(files))


def _config(folder: Path) -> tuple[str, int]:
    """Name and time of export as the configuration has them; loading checks it."""
    try:
        raw = json.loads((folder / CONFIG).read_bytes())
        return str(raw["name"]), int(raw["created"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return folder.resolve().name, 0
