"""The counters and histograms that Prometheus reads."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = tuple(
    unit * step for unit in (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0) for step in (1.0, 2.5, 5.0)
)
_ROWS = tuple(float(2**n) for n in range(13))


class Metrics:
    """A server's metrics in a registry of their own, so that tests can make several."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.rows = Counter(
            "convlm_rows", "Rows computed, by kind.", ["kind"], registry=self.registry
        )
        self.batch_rows = Histogram(
            "convlm_batch_rows", "Rows of a batch.", buckets=_ROWS, registry=self.registry
        )
        self.batch_seconds = Histogram(
            "convlm_batch_duration_seconds",
            "Time of a batch in the runtime.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.queue_tokens = Gauge(
            "convlm_queue_tokens",
            "Tokens of texts and prompts that are still to be computed.",
            registry=self.registry,
        )
        self.queue_seconds = Gauge(
            "convlm_queue_seconds",
            "How long they take at the measured rate.",
            registry=self.registry,
        )
        self.ignored_fields = Counter(
            "convlm_ignored_fields", "Unknown request fields ignored.", registry=self.registry
        )
        self.rejected = Counter(
            "convlm_requests_rejected",
            "Requests refused, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self.connections = Gauge("convlm_connections", "Open connections.", registry=self.registry)
        self.engine_errors = Counter(
            "convlm_engine_errors",
            "Batches that failed, or gave no numbers.",
            registry=self.registry,
        )
        self.retried_batches = Counter(
            "convlm_batches_retried",
            "Batches that failed and were run again in halves.",
            registry=self.registry,
        )
        self.failed_sequences = Counter(
            "convlm_sequences_failed",
            "Texts, spans and streams that failed alone, or gave no numbers.",
            registry=self.registry,
        )
        self.oldest_batch = Gauge(
            "convlm_oldest_batch_seconds",
            "Age of the oldest running batch; 0 if none runs.",
            registry=self.registry,
        )
        self.reloads = Counter(
            "convlm_reloads",
            "Bundles loaded after the start, by outcome.",
            ["outcome"],
            registry=self.registry,
        )
        self.models = Gauge(
            "convlm_models",
            "Models loaded, with those that were replaced and are still used.",
            registry=self.registry,
        )
