"""Limits how much work may wait."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import OverloadError
from app.metrics import Metrics

_MAX_RETRY_SECONDS = 120


class Admission:
    """Counts the tokens of unfinished requests, against a limit."""

    def __init__(self, limit: int, metrics: Metrics) -> None:
        self.limit, self.metrics = limit, metrics
        self.tokens = 0
        metrics.queue_tokens.set_function(lambda: self.tokens)

    @contextmanager
    def admitted(self, tokens: int, tokens_per_second: float) -> Iterator[None]:
        """Counts `tokens` meanwhile. Raises OverloadError if they do not fit."""
        if self.tokens and self.tokens + tokens > self.limit:
            self.metrics.rejected.labels("overloaded").inc()
            wait = min(_MAX_RETRY_SECONDS, max(1, math.ceil(self.tokens / tokens_per_second)))
            raise OverloadError(
                f"{self.tokens} tokens are waiting and this request has {tokens}, which is over "
                f"max_queue_tokens, {self.limit}; come again in {wait} s",
                wait,
            )
        self.tokens += tokens
        try:
            yield
        finally:
            self.tokens -= tokens
