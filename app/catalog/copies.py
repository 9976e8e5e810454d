"""Private copies of bundles that may change while they are served.

ONNX Runtime maps the weights into memory: overwriting the file would change them in the middle of a
batch, and truncating it would end the process. A copy is needed only until the model is loaded: its
files then have no names any more, but exist as long as they are mapped. A process that is killed
before leaves one; the next server removes it.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from app.errors import EngineError
from model.core.bundle import BundleError

if sys.platform != "win32":
    import fcntl

    _FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW

_log = logging.getLogger(__name__)
_PREFIX = "convlm-bundle-"


class BundleCopies:
    """Makes copies in the folder for temporary files, each locked while its process lives.

    Several servers may share that folder, also from containers with process ids of their own; the
    lock (flock) ends with the process, however it ends.
    """

    def __init__(self) -> None:
        self._own: set[Path] = set()

    @contextmanager
    def frozen(self, folder: Path) -> Iterator[Path]:
        """A copy of a bundle's folder, removed when the block ends. Raises BundleError."""
        with _locked_folder() as copies:
            self._own.add(copies)
            try:
                copy = copies / "bundle"
                copy.mkdir()
                _copy_files(folder, copy)
                yield copy
            except (BundleError, EngineError) as error:
                # the message must name the original folder, not the copy
                raise type(error)(str(error).replace(str(copy), str(folder))) from None
            finally:
                shutil.rmtree(copies, ignore_errors=True)
                self._own.discard(copies)

    def remove(self) -> None:
        """Removes the copies of this process, before it ends in the middle of loading."""
        for copies in list(self._own):
            shutil.rmtree(copies, ignore_errors=True)


def remove_abandoned() -> None:
    """Removes copies whose process is gone. Leaves those of other users and of running servers."""
    if sys.platform == "win32":
        return
    for folder in list(Path(tempfile.gettempdir()).glob(f"{_PREFIX}*")):
        with suppress(OSError):
            descriptor = os.open(folder, _FLAGS)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)
                    _log.info("copy of an ended server removed path=%s", folder)
            finally:
                os.close(descriptor)


@contextmanager
def _locked_folder() -> Iterator[Path]:
    """A new folder, locked against `remove_abandoned` of other servers."""
    if sys.platform == "win32":
        yield Path(tempfile.mkdtemp(prefix=_PREFIX))
        return
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        try:
            descriptor = os.open(folder, _FLAGS)
        except FileNotFoundError:  # another server has removed it before it was locked
            continue
        try:
            with suppress(OSError):  # a file system without locks: nobody else can lock it either
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if folder.exists():  # still
                yield folder
                return
        finally:
            os.close(descriptor)


def _copy_files(folder: Path, copy: Path) -> None:
    try:
        for path in folder.iterdir():
            if path.is_file():
                shutil.copyfile(path, copy / path.name)
    except FileNotFoundError:
        pass  # the checks find what is missing
    except OSError as error:
        raise BundleError(f"the bundle {folder} cannot be copied: {error}") from None
