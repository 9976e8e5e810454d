"""Files that are written completely or not at all, and errors that name them."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

if sys.platform != "win32":
    import fcntl


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds a file's name to system errors without one, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


@contextmanager
def atomic_file(path: Path, *, exclusive: bool = False) -> Iterator[IO[bytes]]:
    """A file to write, which replaces the one at `path` when the block ends.

    It is on the disk by then. If the block raises, the file at `path` stays as it was; a kill
    leaves a `.partial` file. With `exclusive`, for folders without files of the user, the partial
    file always has the same name, so that the next one replaces it, and is locked: FileExistsError
    if another process is writing it. Raises OSError.
    """
    path = path.resolve()  # a link stays one
    check_regular(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    token = "" if exclusive else f".{secrets.token_hex(4)}"  # no other file has that name
    partial = path.with_name(f"{path.name}{token}.partial")
    with naming(path), _locked(partial, path) if exclusive else partial.open("xb") as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if sys.platform == "win32":  # no open file can be renamed there
                file.close()
            partial.replace(path)  # while it is locked
        except BaseException:
            if sys.platform == "win32":
                with suppress(OSError):
                    file.close()
            partial.unlink(missing_ok=True)
            raise


def check_regular(path: Path, advice: str = "choose another") -> None:
    """Raises FileExistsError for a folder, a pipe or a device such as /dev/null."""
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is not a regular file; {advice}")


@contextmanager
def _locked(partial: Path, path: Path) -> Iterator[IO[bytes]]:
    """An empty file, locked against other processes. Raises FileExistsError if one has it."""
    while True:
        with partial.open("ab") as file:  # emptied only once it is locked
            lock(file, path)
            if partial.exists() and os.path.samestat(os.fstat(file.fileno()), partial.stat()):
                file.truncate(0)
                yield file
                return
        # another process has finished it in between


def cut_torn_line(path: Path) -> None:
    """Removes a last line without a line feed, as a kill or a full disk leaves it."""
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def lock(file: IO[Any], path: Path) -> None:
    """Locks a file for this process until it is closed, on systems that have such locks.

    Raises FileExistsError if another process has locked it.
    """
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FileExistsError(f"{path}: another command is writing it") from None
    except OSError:  # a file system without locks
        return


_KINDS = {
    "corpus.json": "a prepared corpus",
    "last.pt": "a training run",
    "model.bin": "an n-gram model",
    "checksums.json": "a bundle",
}
"""Files that mark a folder, and the kind of folder that each marks."""


def check_folder(folder: Path, mark: str) -> None:
    """Raises OSError if a folder to write to is of another kind than the one that `mark` marks."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; choose a folder")
    for name, kind in _KINDS.items():
        if name != mark and (folder / name).exists():
            raise FileExistsError(f"{folder} holds {kind}; choose another folder")
