"""What runs a batch, and how a batch is prepared for it."""

from __future__ import annotations

from typing import Protocol

from app.engine.planner import plan
from app.engine.policy import POLICY
from app.engine.results import Assignment, draws
from app.engine.runtime.outputs import Outputs
from app.engine.sampling.adaptive import tail_terms
from model.core.config import Taps
from model.core.flat_batch import FlatBatch
from model.core.graph import Precision


class Runner(Protocol):
    """Runs flat batches (`Session`, or a test's fake)."""

    taps: Taps
    precision: Precision
    multiple: int
    """The rows of a batch are filled up to a multiple of it."""
    tail_count: int
    """Tails of an adaptive softmax; 0 for a full one."""

    @property
    def build(self) -> str:
        """What decides the bits of a result besides the bundle."""
        ...

    def run(self, batch: FlatBatch) -> Outputs:
        """Runs a batch. Raises EngineError."""
        ...

    def check(self) -> None:
        """Raises EngineError if it computes wrong results."""
        ...


def flat_batch(picked: list[Assignment], runner: Runner) -> FlatBatch:
    """The batch of some pieces, for a runner."""
    drawn = draws(picked) if runner.tail_count else []
    tails = tail_terms(drawn, runner.tail_count) if drawn else None
    return plan([a.piece for a in picked], runner.taps, runner.multiple, tails)


def gets_all_cores(picked: list[Assignment], precision: Precision) -> bool:
    """Whether a batch gets all cores while nothing else runs: one text or prompt, or streams.

    Many short texts do not: their callers need the remaining cores to send the next requests. Nor
    do few rows in 8 bits, which gain nothing.
    """
    if all(a.sequence.streaming for a in picked):
        return precision == "float32"
    if len(picked) > 1:
        return False
    return precision != "int8" or picked[0].piece.rows >= POLICY.all_cores_rows_int8
