"""The command line with an engine that fails: `python -m tests.bench.faulty_server serve`.

While the file that FAULTS_FILE names exists, one of so many batches raises an exception as the file
says, at random.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from app.cli.main import main
from app.engine.runtime.outputs import Outputs
from app.engine.runtime.session import Session
from app.errors import EngineError
from model.core.flat_batch import FlatBatch

VARIABLE = "FAULTS_FILE"
_LOOK_SECONDS = 0.2


class _Faults:
    """How often to fail, read anew from time to time."""

    def __init__(self, path: Path) -> None:
        self._path, self._looked, self._batches = path, float("-inf"), 0

    def due(self) -> bool:
        """Whether this batch fails."""
        now = time.monotonic()
        if now - self._looked > _LOOK_SECONDS:
            self._looked = now
            self._batches = int(self._path.read_text()) if self._path.exists() else 0
        return self._batches > 0 and random.random() < 1 / self._batches


def _inject(faults: _Faults) -> None:
    run = Session.run

    def fail_at_times(session: Session, batch: FlatBatch) -> Outputs:
        if faults.due():
            raise EngineError("the engine could not run a batch: a fault was injected")
        return run(session, batch)

    Session.run = fail_at_times  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    _inject(_Faults(Path(os.environ[VARIABLE])))
    main()
