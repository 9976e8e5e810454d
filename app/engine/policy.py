"""The engine's limits and thresholds, each threshold with its reason.

Figures are from docs/benchmarks.md, on two cores. No threshold changes a result, only its time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from model.core.graph import Precision


@dataclass(frozen=True, slots=True)
class Budget:
    """Rows of a batch: `tokens` at most, twice as many while the scheduler is busy, `stream_tokens`
    while streams are open.

    shared: the least number of waiting rows that is shared among the workers although one batch
    could hold them; fewer are left to a worker that runs already. None disables sharing.
    At most `stream_tokens` rows have a distribution: a distribution is as wide as the vocabulary,
    and those of a full batch would not fit into the processor's cache.
    """

    tokens: int
    stream_tokens: int
    shared: int | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """When batches grow, when work is shared, and when it has all cores."""

    turn_rows: int = 128
    """Rows of a caller's turn, twice as many while the scheduler is busy: busy batches with turns
    of 128 rows had a p99 of 98 to 117 ms, with 256 rows 88 ms."""

    new_rows: int = 512
    """A caller with fewer rows so far is new, and goes before the others, in the order of
    arrival. Compared with round-robin turns alone, the slowest lines of 32 clients
    took 0.6 of the time, the median 1.3."""

    reserved_share: float = 0.25
    """Of the rows of a batch, the share that those who go first leave to the others."""

    bulk_batches: int = 16
    """Batches after which bulk that waits goes first once, with a quarter of the rows: where the
    rows that are reserved for it are fewer than a halo, it would never have any."""

    passed_callers: int = 64
    """Callers in a row that a batch has nothing for, after which it looks at no more: with 8,000
    that waited for distributions, of which a batch has few, looking took 30 ms."""

    unread_tokens: int = 256
    """Tokens of a stream that may be unread; then it has no rows until its reader goes on. More
    than are generated while the event loop is busy for 0.1 s, and 40 KB without alternatives."""

    busy_callers: int = 8
    """From this many waiting callers on, while no stream waits, batches and turns have twice the
    rows: 593 instead of 539 lines a second in 8 bits, 286 instead of 271 in float32 (Zen 5).
    Without it 32 clients' lines took 1.04 to 1.13 of the time in float32 (Zen 3, on busy cores)."""

    shared_streams: int = 8
    """From this many streams on, the workers share them: a step of 8 streams takes as long as one
    of a single stream (1.28 and 1.30 ms in float32), so fewer gain nothing by being shared."""

    shared_rows: int = 128
    """`Budget.shared` in float32 and, unmeasured, in float16: requests of 10 tokens took 0.91 to
    0.98 of the time (Zen 4). Thresholds of 64, 192 and 256 rows were no faster."""

    shared_rows_int8: int = 384
    """`Budget.shared` in 8 bits, where rows are cheap beside a batch's fixed cost: 32 clients had
    2,019 requests of 10 tokens a second answered without a threshold, 3,003 with this (Zen 4)."""

    all_cores_rows_int8: int = 256
    """A single text of fewer rows stays on one core in 8 bits. One thread and two: 0.88 and 1.13 ms
    (20 rows), 4.9 and 5.1 (256), 9.9 and 7.0 (512). In float32 two are faster from 10 rows on."""

    prefix_rows: int = 8
    """Rows that sharing a prefix must save, since a shared prefix is one more piece to run and to
    deliver. Pairs that save 2 and 8 rows took 1.08 and 0.92 of the time (float32, Zen 3)."""

    sessions: int = 4
    """Most sessions that share the cores by default: each holds the products' weights once more."""

    failures: int = 3
    """Failed batches in a row before the device itself is checked: a bad batch fails once, a dead
    GPU fails always."""

    memory_rows: int = 32
    """Batches of so few rows are not made smaller when memory is lacking: a batch's fixed memory
    is then more than its rows'. A piece of a text can have fewer."""

    memory_batches: int = 100
    """Batches near the limit of memory that succeed before it is doubled: if memory still lacks,
    one batch in a hundred is run twice."""

    def rows_to_share(self, precision: Precision) -> int:
        """`Budget.shared` for a precision."""
        return self.shared_rows_int8 if precision == "int8" else self.shared_rows


POLICY: Final = Policy()
"""The policy of every engine; tests and measurements make others."""
