"""Both models on ONNX Runtime with the same task: log-probabilities of given texts."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from itertools import pairwise
from typing import Literal, Protocol

import numpy as np
import onnxruntime as ort
from onnxscript import ir

from model.architecture.gcnn import GCNN
from model.architecture.lstm import LSTM
from model.baselines import lstm_graph
from model.baselines.lstm_graph import LSTMGraph
from model.core import graph
from model.core.addresses import NONE, Pieces, addresses
from model.core.config import Taps
from model.core.flat_batch import FlatBatch
from model.core.graph import Floats, Indices
from model.export.flat import float_graph

Device = Literal["cpu", "cuda"]
_SLOT = 1
"""The slot of the one text that is scored in pieces."""


class Scorer(Protocol):
    """A model that scores texts. tokens, targets: int64; log-probabilities: float32, nats."""

    def one(self, tokens: Indices, targets: Indices, rows: int) -> Floats:
        """One text, `rows` tokens a run, with the state kept between runs. [N], [N] to [N]."""

    def many(self, tokens: Indices, targets: Indices, texts: int, rows: int) -> Floats:
        """Texts of one length, `texts` of them side by side. [B, N], [B, N] to [B, N].

        A run has at most about `rows` tokens.
        """


class GCNNScorer:
    """The flat graph. A piece of a text continues from the state of the one before."""

    def __init__(self, model: GCNN, threads: int, device: Device = "cpu") -> None:
        self.config = model.config
        built = float_graph(model.stored())
        self._session = _session(built, threads, device)
        self._pools = graph.empty_pools(self.config, slots=2, precision="float32")
        self._outputs = [graph.LOGPROBS, *(graph.new_pool_name(name) for name in self._pools)]

    def one(self, tokens: Indices, targets: Indices, rows: int) -> Floats:
        """See `Scorer.one`."""
        logprobs = []
        for begin in range(0, len(tokens), rows):
            part = slice(begin, begin + rows)
            batch = _piece(tokens[part], targets[part], self.config.taps, begin)
            logprobs.append(self._run(batch))
        return np.concatenate(logprobs)

    def many(self, tokens: Indices, targets: Indices, texts: int, rows: int) -> Floats:
        """See `Scorer.many`; a run has complete texts, so `rows` is not used."""
        logprobs = []
        for begin in range(0, len(tokens), texts):
            part = slice(begin, begin + texts)
            batch = _side_by_side(tokens[part], targets[part], self.config.taps)
            logprobs.append(self._run(batch))
        return np.concatenate(logprobs).reshape(tokens.shape)

    def _run(self, batch: FlatBatch) -> Floats:
        feeds = batch.feeds(self.config) | self._pools
        logprobs, *pools = self._session.run(self._outputs, feeds)
        self._pools = dict(zip(self._pools, pools, strict=True))
        return np.asarray(logprobs)


class LSTMScorer:
    """The LSTM's graph: step by step, many texts side by side, state kept between runs."""

    def __init__(self, model: LSTM, threads: int, device: Device = "cpu") -> None:
        self.config, self.start_id = model.config, model.start_id
        built = LSTMGraph(lstm_graph.round_weights(model)).build()
        self._session = _session(built, threads, device)
        states = lstm_graph.empty_states(self.config, 1)
        self._outputs = [graph.LOGPROBS, *(graph.new_pool_name(name) for name in states)]

    def one(self, tokens: Indices, targets: Indices, rows: int) -> Floats:
        """See `Scorer.one`. A start symbol inside the text resets the state to zero."""
        cuts = [0, *(1 + np.flatnonzero(tokens[1:] == self.start_id)), len(tokens)]
        logprobs = [
            self._steps(tokens[first:last, None], targets[first:last, None], rows)
            for first, last in pairwise(cuts)
        ]
        return np.concatenate(logprobs)[:, 0]

    def many(self, tokens: Indices, targets: Indices, texts: int, rows: int) -> Floats:
        """See `Scorer.many`."""
        logprobs = []
        for begin in range(0, len(tokens), texts):
            part = slice(begin, begin + texts)
            steps = max(1, rows // texts)
            logprobs.append(self._steps(tokens[part].T, targets[part].T, steps).T)
        return np.concatenate(logprobs)

    def _steps(self, tokens: Indices, targets: Indices, steps: int) -> Floats:
        """[N, B], [N, B] to [N, B], `steps` steps a run."""
        states = lstm_graph.empty_states(self.config, tokens.shape[1])
        logprobs = []
        for begin in range(0, len(tokens), steps):
            part = slice(begin, begin + steps)
            feeds = lstm_graph.feeds(self.config, tokens[part], targets[part]) | states
            part_logprobs, *after = self._session.run(self._outputs, feeds)
            states = dict(zip(states, after, strict=True))
            logprobs.append(np.asarray(part_logprobs))
        return np.concatenate(logprobs)


def _session(model: ir.Model, threads: int, device: Device) -> ort.InferenceSession:
    """threads: 0 for one on each core. Raises ValueError if the device cannot be used."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    providers: list[str | tuple[str, dict[str, int]]] = ["CPUExecutionProvider"]
    if device == "cuda":
        providers.insert(0, ("CUDAExecutionProvider", {"use_tf32": 0}))  # float32, as on a CPU
        with redirect_stdout(sys.stderr):  # it prints what is missing to the report's stream
            ort.preload_dlls(cudnn=False)
    raw = ir.to_proto(model).SerializeToString()
    problem = f"{device} does not work with this ONNX Runtime or this machine"
    try:  # the runtime's fallback would print as well
        session = ort.InferenceSession(raw, options, providers=providers, enable_fallback=0)
    except RuntimeError as error:
        raise ValueError(f"{problem}: {' '.join(str(error).split())}") from error
    if len(session.get_providers()) < len(providers):
        raise ValueError(problem)
    return session


def _side_by_side(tokens: Indices, targets: Indices, taps: Taps) -> FlatBatch:
    """Complete texts of one length, all rows scored. tokens, targets: int64 [B, N]; T = B * N."""
    count, length = tokens.shape
    none = np.full(count, NONE)
    texts = Pieces(np.full(count, length), np.zeros(count, np.int64), none, none)
    return FlatBatch(
        tokens=tokens.reshape(-1),
        addresses=addresses(texts, taps),
        score_rows=np.arange(count * length),
        targets=targets.reshape(-1),
        next_rows=np.array([0]),
    )


def _piece(tokens: Indices, targets: Indices, taps: Taps, begin: int) -> FlatBatch:
    """A piece of one text, all rows scored. Its state is written, and read unless `begin` is 0.

    tokens, targets: int64 [T].
    """
    pieces = Pieces.one(len(tokens), begin, _SLOT if begin else NONE, _SLOT)
    return FlatBatch(
        tokens=tokens,
        addresses=addresses(pieces, taps),
        score_rows=np.arange(len(tokens)),
        targets=targets,
        next_rows=np.array([0]),
    )
