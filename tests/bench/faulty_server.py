"""`convlm` with a fault in its engine: `python -m tests.bench.faulty_server FAULT serve ...`.

The fault comes with the batch that holds the last token of the vocabulary twice in a row:
`poisoned` makes such texts. See `FAULTS`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np

from app.cli.main import main
from app.engine.runtime.outputs import Outputs
from app.engine.runtime.session import Session
from app.errors import EngineError
from model.core.flat_batch import FlatBatch

MEMORY_ROWS = 35
"""Rows of a batch beyond the receptive field that have memory: with less nothing could run."""
ENDLESS_SECONDS = 3600.0
Run = Callable[[Session, FlatBatch], Outputs]


def poisoned(vocabulary: int) -> list[int]:
    """Token ids of a text that has the fault."""
    return [2, 3, *[vocabulary - 1] * 3]


class Faults:
    """Stands for `Session.run`, on several threads. seconds: how long the engine hangs."""

    def __init__(self, run: Run, kind: str, seconds: float) -> None:
        self._run, self._seconds, self._seen = run, seconds, 0
        self._fault: Callable[[Session, FlatBatch, bool], Outputs] = getattr(self, kind)

    def run(self, session: Session, batch: FlatBatch) -> Outputs:
        """Runs a batch with the fault, if it has come."""
        last = batch.tokens == session.config.vocabulary - 1
        has = bool((last[1:] & last[:-1]).any())
        self._seen += has
        return self._fault(session, batch, has)

    def exception(self, session: Session, batch: FlatBatch, has: bool) -> Outputs:
        """Such a batch raises an error."""
        if has:
            raise RuntimeError("an injected fault")
        return self._run(session, batch)

    def nan(self, session: Session, batch: FlatBatch, has: bool) -> Outputs:
        """The scores of the token are no numbers."""
        outputs = self._run(session, batch)
        if not has:
            return outputs
        logprobs = outputs.logprobs.copy()
        logprobs[batch.targets == session.config.vocabulary - 1] = np.nan
        return outputs._replace(logprobs=logprobs)

    def hang(self, session: Session, batch: FlatBatch, has: bool) -> Outputs:
        """The first such batch takes so many seconds more."""
        if has and self._seen == 1:
            time.sleep(self._seconds)
        return self._run(session, batch)

    def endless(self, session: Session, batch: FlatBatch, has: bool) -> Outputs:
        """Such a batch does not end."""
        if has:
            time.sleep(ENDLESS_SECONDS)
        return self._run(session, batch)

    def memory(self, session: Session, batch: FlatBatch, has: bool) -> Outputs:
        """From the first such batch on, larger ones lack memory."""
        most = session.config.receptive_field + MEMORY_ROWS
        if self._seen and len(batch.tokens) > most:
            raise MemoryError("an injected lack")
        return self._run(session, batch)

    def always(self, session: Session, batch: FlatBatch, has: bool) -> Outputs:
        """From the first such batch on, every batch raises an error."""
        if self._seen:
            raise EngineError("an injected fault")
        return self._run(session, batch)


FAULTS = ("exception", "nan", "hang", "endless", "memory", "always")


def inject(kind: str, seconds: float = 0.0) -> None:
    """Gives every session of this process a fault."""
    faults = Faults(Session.run, kind, seconds)
    Session.run = lambda self, batch: faults.run(self, batch)  # type: ignore[method-assign]


if __name__ == "__main__":
    name, _, seconds = sys.argv.pop(1).partition(":")
    inject(name, float(seconds or 0))
    main()
