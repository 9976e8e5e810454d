"""Ray Serve: a proxy process, and replicas that batch and score."""

from __future__ import annotations

import asyncio
import signal

import ray
from ray import serve
from starlette.requests import Request

from tests.bench.peers.scorer import BATCH_WAIT_SECONDS, PATH, Scorer, setting

chosen = setting()


@serve.deployment(
    num_replicas=chosen.workers,
    max_ongoing_requests=1000,
    ray_actor_options={"num_cpus": 0},
)
class ScoreDeployment:
    """Scores on a thread, so that requests are read meanwhile."""

    def __init__(self) -> None:
        self.scorer = Scorer(setting())

    @serve.batch(max_batch_size=chosen.batch, batch_wait_timeout_s=BATCH_WAIT_SECONDS)
    async def totals(self, texts: list[str]) -> list[dict[str, float]]:
        """Totals of each text."""
        return await asyncio.to_thread(self.scorer.totals, texts)

    async def __call__(self, request: Request) -> dict[str, float]:
        """Scores one text."""
        text = (await request.json())["input"]
        return await self.totals(text)


if __name__ == "__main__":
    ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": chosen.port})
    serve.run(ScoreDeployment.bind(), route_prefix=PATH)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    ray.shutdown()
