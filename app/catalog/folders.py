"""The folders of bundles, and a record of their files by which changes show."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from app.settings import Settings
from model.core.bundle import CHECKSUMS, CONFIG, NAME, NAME_RULE, BundleError


@dataclass(frozen=True, slots=True)
class BundleFolder:
    """A bundle's folder and the model's name. files: name, size, time and inode of each file."""

    name: str
    path: Path
    created: int
    """Unix time of the export, in seconds; 0 if the configuration cannot be read."""
    files: tuple[tuple[str, int, int, int], ...]


class BundleFolders:
    """All bundles that the settings name. A model keeps its name while the server runs."""

    def __init__(self, settings: Settings) -> None:
        self._root = settings.bundles
        single = settings.bundle if settings.bundles is None or settings.names_bundle else None
        self._single = single
        """The bundle of the setting `bundle`, which has the default model."""
        self._single_name = ""
        if single is not None:
            inside = self._root is not None and single.resolve().parent == self._root.resolve()
            self._single_name = single.resolve().name if inside else _config(single)[0]

    def scan(self, known: Collection[str]) -> dict[str, BundleFolder]:
        """All bundles by name, the default model's first. Raises BundleError.

        known: names of folders that are listed even if they have no checksums any more.
        """
        bundles: dict[str, BundleFolder] = {}
        if self._single is not None:
            bundles[self._single_name] = inspect(self._single_name, self._single)
        if self._root is not None:
            try:
                paths = sorted(self._root.iterdir())
            except OSError as error:
                raise BundleError(f"the folder of bundles cannot be read: {error}") from None
            for path in paths:
                # exports that are not complete begin with a dot
                if re.fullmatch(NAME, path.name) and path.is_dir():
                    bundle = inspect(path.name, path)
                    if path.name in known or any(name == CHECKSUMS for name, *_ in bundle.files):
                        bundles.setdefault(path.name, bundle)
        if not bundles:
            raise BundleError(
                f"{self._root} contains no bundle; a folder's name may have only {NAME_RULE}"
            )
        return bundles


def inspect(name: str, path: Path) -> BundleFolder:
    """A folder as it is now."""
    files = []
    try:
        for file in sorted(path.iterdir()):
            status = file.stat()
            files.append((file.name, status.st_size, status.st_mtime_ns, status.st_ino))
    except OSError:  # the folder is being replaced, or gone: loading will say so
        files = []
    return BundleFolder(name, path, _config(path)[1], tuple(files))


def _config(path: Path) -> tuple[str, int]:
    """Name and time of the export, as the configuration has them; loading checks it."""
    try:
        raw = json.loads((path / CONFIG).read_bytes())
        return str(raw["name"]), int(raw["created"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return path.resolve().name, 0
