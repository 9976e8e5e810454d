"""LitServe: a process for HTTP, and processes that score what it batches."""

from __future__ import annotations

import litserve

from tests.bench.peers.scorer import BATCH_WAIT_SECONDS, PATH, Scorer, setting


class ScoreAPI(litserve.LitAPI):
    """`predict` has a text, or a list of them if batches are larger than one."""

    def setup(self, device: str) -> None:
        """In each scoring process."""
        self.scorer = Scorer(setting())

    def decode_request(self, request: dict[str, str]) -> str:
        """The text of a request."""
        return request["input"]

    def predict(self, texts: str | list[str]) -> dict[str, float] | list[dict[str, float]]:
        """Totals of each text."""
        if isinstance(texts, str):
            return self.scorer.totals([texts])[0]
        return self.scorer.totals(texts)

    def encode_response(self, output: dict[str, float]) -> dict[str, float]:
        """Totals as they are."""
        return output


if __name__ == "__main__":
    chosen = setting()
    batching = {"max_batch_size": chosen.batch, "batch_timeout": BATCH_WAIT_SECONDS}
    api = ScoreAPI(api_path=PATH, **(batching if chosen.batch > 1 else {}))
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=chosen.workers, fast_queue=True
    )
    server.run(
        host="127.0.0.1",
        port=chosen.port,
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
