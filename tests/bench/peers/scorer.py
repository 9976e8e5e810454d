"""What each generic server does for its requests: tokenise, run the padded graph, sum up.

Runs in the environments of the servers, so it imports nothing that needs torch or convlm's server.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when the runtime is imported

import onnxruntime as ort

from model.core import bundle
from model.core.graph import LOGPROBS, TARGETS, TOKENS

PATH = "/v1/score"
BATCH_WAIT_SECONDS = 0.005
"""How long a server that batches waits for a batch to fill, where it has such a setting."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How a server is to run. workers: processes, or runs at once; threads: those of one run."""

    bundle: Path
    graph: Path
    port: int
    batch: int
    workers: int
    threads: int

    def environment(self) -> dict[str, str]:
        """The setting as environment variables, which reach the processes of every server."""
        return {_variable(name): str(getattr(self, name)) for name in Setting.__slots__}


def setting() -> Setting:
    """What the environment says."""
    found = {name: os.environ[_variable(name)] for name in Setting.__slots__}
    paths = {name: Path(found.pop(name)) for name in ("bundle", "graph")}
    return Setting(**paths, **{name: int(text) for name, text in found.items()})


class Scorer:
    """A session of its own; batches of texts to what `POST /v1/score` answers of each."""

    def __init__(self, setting: Setting) -> None:
        loaded = bundle.load(setting.bundle)
        self.tokenizer, self.start_id = loaded.tokenizer, loaded.config.start_id
        options = ort.SessionOptions()
        options.intra_op_num_threads = setting.threads
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        self._session = ort.InferenceSession(setting.graph, options, providers=providers)

    def totals(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """Sum of log-probabilities, tokens and perplexity of each text, none of them empty."""
        ids = [encoded.ids for encoded in self.tokenizer.encode_many(texts)]
        longest = max(len(row) for row in ids)
        tokens = np.zeros((len(ids), longest), np.int64)
        targets = np.full((len(ids), longest), -1, np.int64)
        tokens[:, 0] = self.start_id
        for place, row in enumerate(ids):
            tokens[place, 1 : len(row)] = row[:-1]
            targets[place, : len(row)] = row
        (logprobs,) = self._session.run([LOGPROBS], {TOKENS: tokens, TARGETS: targets})
        sums = logprobs.sum(1, dtype=np.float64).tolist()
        return [_totals(total, len(row)) for total, row in zip(sums, ids, strict=True)]


def _totals(logprob_sum: float, count: int) -> dict[str, float]:
    return {
        "logprob_sum": logprob_sum,
        "token_count": count,
        "perplexity": math.exp(-logprob_sum / count),
    }


def _variable(name: str) -> str:
    return f"PEER_{name.upper()}"
