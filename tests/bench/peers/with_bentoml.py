"""BentoML: `bentoml serve`, whose adaptive batching joins requests that are lists already."""

from __future__ import annotations

import bentoml

from tests.bench.peers.scorer import PATH, Scorer, setting

chosen = setting()


@bentoml.service(
    workers=chosen.workers, traffic={"timeout": 60}, logging={"access": {"enabled": False}}
)
class ScoreService:
    """Batches of one need no batching, so they do without."""

    def __init__(self) -> None:
        self.scorer = Scorer(setting())

    @bentoml.api(
        route=PATH,
        batchable=chosen.batch > 1,
        max_batch_size=chosen.batch,
        max_latency_ms=60_000,
    )
    def totals(self, input: list[str]) -> list[dict[str, float]]:
        """Totals of each text."""
        return self.scorer.totals(input)
