"""mosec: HTTP and batching in Rust, and processes that score the batches."""

from __future__ import annotations

import sys

from mosec import Server, Worker

from tests.bench.peers.scorer import BATCH_WAIT_SECONDS, PATH, Scorer, setting


class ScoreWorker(Worker):
    """`forward` has a body, or a list of them if batches are larger than one."""

    def __init__(self) -> None:
        self.scorer = Scorer(setting())

    def forward(
        self, data: dict[str, str] | list[dict[str, str]]
    ) -> dict[str, float] | list[dict[str, float]]:
        """Totals of each text."""
        if isinstance(data, dict):
            return self.scorer.totals([data["input"]])[0]
        return self.scorer.totals([body["input"] for body in data])


if __name__ == "__main__":
    chosen = setting()
    sys.argv += ["--address", "127.0.0.1", "--port", str(chosen.port), "--timeout", "60000"]
    sys.argv += ["--log-level", "warning"]
    server = Server()
    server.append_worker(
        ScoreWorker,
        num=chosen.workers,
        max_batch_size=chosen.batch,
        max_wait_time=int(1000 * BATCH_WAIT_SECONDS),
        route=PATH,
    )
    server.run()
