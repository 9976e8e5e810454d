"""BentoML: `bentoml serve`, whose adaptive batching joins requests that are lists already."""

from __future__ import annotations

import bentoml

from tests.bench.peers.scorer import PATH, Scorer, setting

chosen = setting()


batching = {"batchable": True, "max_batch_size": chosen.batch, "max_latency_ms": 60_000}


@bentoml.service(
    workers=chosen.workers,
    threads=1,  # of one process: as many runs at once
    traffic={"timeout": 60},
    logging={"access": {"enabled": False}},
)
class ScoreService:
    """A request is a list of texts, as adaptive batching wants it."""

    def __init__(self) -> None:
        self.scorer = Scorer(setting())

    @bentoml.api(route=PATH, **(batching if chosen.batch > 1 else {}))
    def totals(self, input: list[str]) -> list[dict[str, float]]:
        """Totals of each text."""
        return self.scorer.totals(input)
