"""ONNX Runtime sessions: opens and checks them, holds the state pool, runs flat batches."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TypeVar

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when the runtime is imported

import onnxruntime as ort

from app.engine.policy import POLICY
from app.engine.runtime.binding import Binding
from app.engine.runtime.devices import (
    Device,
    MissingLibrariesError,
    WantedDevice,
    WantedPrecision,
    choose_devices,
    choose_precision,
    gpus,
    load_libraries,
)
from app.engine.runtime.outputs import Alternatives, Outputs
from app.engine.sampling.distributions import NO_DISTRIBUTIONS, NextDistributions
from app.errors import EngineError, NoMemoryError
from model.core import byte_products
from model.core.bundle import Bundle, Golden
from model.core.flat_batch import NO_ROWS, FlatBatch, pad, whole_text
from model.core.graph import (
    ALTERNATIVE_LOGPROBS,
    ALTERNATIVE_OUTPUTS,
    LOGPROBS,
    NEXT_LOGPROBS,
    NEXT_TAIL_ROWS,
    NEXT_TAILS,
    ROW_MULTIPLES,
    Precision,
    empty_pools,
)
from model.core.processor import processor_name

Candidate = TypeVar("Candidate", bound=str)
Opened = TypeVar("Opened")
Sessions = list[tuple["Session", list["Session"]]]
"""For each device a session with all its cores, and sessions that share them."""

_log = logging.getLogger(__name__)
_GOLDEN_TOLERANCES: dict[Precision, tuple[float, float]] = {
    # far above rounding on any device, far below the effect of a wrong weight
    "float32": (1e-3, 1e-3),
    # sums are rounded in another order on every device; on a CPU an export may be off by 0.02 on
    # average (`parity.HALF_TOLERANCE`), the shipped model is by 0.001, and by 0.0035 at most
    "float16": (0.03, 0.15),
    # a sum that differs in its last bit can be rounded to the next byte
    "int8": (0.08, math.inf),
}
"""Nats by which scores of a golden text may be off, on average and at most."""

_NO_MEMORY = (
    "Failed to allocate memory",  # an arena could not grow
    "Available memory of",  # an arena may not grow; "... is smaller than requested bytes of ..."
    "bad_alloc",
    "out of memory",  # cudaErrorMemoryAllocation
    "ALLOC_FAILED",  # a status of cuBLAS
)
"""Parts of the runtime's messages if memory is lacking: its errors have no type of their own."""

ort.set_default_logger_severity(3)  # its warnings do not help operators


class Session:
    """The flat graph with its state pool, on one device. One thread at a time runs batches.

    slots: states that the pool holds besides the scratch slot. threads: 0 for one a core.
    pool_of: a session of the same bundle, device and precision, whose pool this one uses. Both may
    run at a time, on batches that write to none of each other's slots. gpu: the GPU's number, if it
    runs on one. Raises EngineError if the session cannot be opened.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        threads: int,
        slots: int,
        precision: Precision = "float32",
        pool_of: Session | None = None,
        gpu: int = 0,
    ) -> None:
        config = bundle.config.model
        self.device, self.precision = device, precision
        self.config, self.taps = config, config.taps
        self.multiple, self.tail_count = ROW_MULTIPLES[precision], len(config.tails)
        self._golden = bundle.golden
        graph = _graph(bundle, precision)
        try:
            self._session = _open(graph, device, threads, gpu)
            if pool_of is None:
                states = empty_pools(config, slots + 1, precision).items()
                self._pools = {
                    name: ort.OrtValue.ortvalue_from_numpy(state, device, gpu)
                    for name, state in states
                }
            else:
                self._pools = pool_of._pools
        except MissingLibrariesError:
            raise
        except Exception as error:  # ONNX Runtime has no common type
            raise EngineError(f"the graph {graph} cannot be loaded: {_line(error)}") from error
        distributions = [NEXT_LOGPROBS] + ([NEXT_TAIL_ROWS, NEXT_TAILS] if self.tail_count else [])
        least = int(device != "cpu")  # empty lists have not been tried on GPUs
        # each output takes time
        self._for_scores, self._for_distributions, self._for_alternatives = (
            Binding(self._session, config, self._pools, [LOGPROBS, *more], self.multiple, least)
            for more in ([], distributions, [*distributions, *ALTERNATIVE_OUTPUTS])
        )

    @property
    def build(self) -> str:
        """What decides the bits of a result besides the bundle: runtime, device, processor."""
        runtime = f"onnxruntime {ort.__version__} {self.device}"
        return f"{runtime} {self.precision} {processor_name()}"

    def run(self, batch: FlatBatch) -> Outputs:
        """Runs a batch, which reads and writes states of the pool. Raises EngineError."""
        binding = self._for_scores
        if len(batch.alternative_rows):
            binding = self._for_alternatives
        elif len(batch.next_rows):
            binding = self._for_distributions
        try:
            binding.bind(batch)
            self._session.run_with_iobinding(binding.io)
            values = binding.outputs()
        except Exception as error:  # ONNX Runtime has no common type
            kind = NoMemoryError if _lacks_memory(error) else EngineError
            raise kind(f"the engine could not run a batch: {_line(error)}") from error
        distributions, alternatives = NO_DISTRIBUTIONS, Alternatives.none()
        if NEXT_LOGPROBS in values:
            tails = [values[name] for name in (NEXT_TAIL_ROWS, NEXT_TAILS) if self.tail_count]
            distributions = NextDistributions(values[NEXT_LOGPROBS], self.config.tails, *tails)
        if ALTERNATIVE_LOGPROBS in values:
            alternatives = Alternatives.of(*(values[name] for name in ALTERNATIVE_OUTPUTS))
        return Outputs(values[LOGPROBS], distributions, alternatives)

    def check(self) -> None:
        """Scores the bundle's golden texts. Raises EngineError if their scores are wrong."""
        # with the distribution after one row, or none: in an adaptive softmax the lowest id is in
        # the head, and the highest in a tail
        for golden, chosen in product(self._golden, (np.argmin, np.argmax, None)):
            row = None if chosen is None else int(chosen(golden.ids[1:]))
            mean, worst = self._errors(golden, row)
            max_mean, max_worst = _GOLDEN_TOLERANCES[self.precision]
            if not (mean <= max_mean and worst <= max_worst):  # also if one is not a number
                raise EngineError(
                    f"the engine's scores of a golden text are off by {mean:.2e} nats on average, "
                    f"{worst:.2e} at most, on {self.device} in {self.precision}"
                )

    def _errors(self, golden: Golden, row: int | None) -> tuple[float, float]:
        """Nats by which a golden text's scores are off, on average and at most.

        row: whose score is read from its distribution too.
        """
        targets = golden.ids[1:]
        next_rows = NO_ROWS if row is None else pad([row], 0, self.multiple)
        batch = whole_text(golden.ids, self.taps, self.multiple)
        outputs = self.run(replace(batch, next_rows=next_rows))
        scores = golden.int8 if self.precision == "int8" else golden.logprobs
        got, expected = outputs.logprobs[: len(targets)], np.array(scores, np.float32)
        if row is not None:
            first = math.nan
            with suppress(KeyError):  # its tail was not computed
                first = outputs.next_distributions.logprob(0, targets[row])
            got, expected = np.append(got, first), np.append(expected, expected[row])
        errors = np.abs(got - expected)
        return float(errors.mean()), float(errors.max())


def open_sessions(
    bundle: Bundle,
    device: WantedDevice,
    threads: int,
    sessions: int,
    slots: int,
    precision: WantedPrecision = "float32",
) -> Sessions:
    """For each GPU a session, or for the CPU one with all cores and several that share them.

    The sessions of a device share one pool. threads: 0 for one a core. sessions: how many share
    the threads; 0 for one a thread, but at most `Policy.sessions`. Only one is opened where one
    would have all threads.

    Every session has scored the golden texts rightly. If that fails, `auto` as device falls back to
    the CPU, and `auto` as precision from 8 bits to float32; the log has the reasons. Raises
    EngineError if nothing is left to fall back to.
    """

    def opened(on: Device, kind: Precision) -> Sessions:
        if on == "cpu":
            return _on_cpu(bundle, threads, sessions, slots, kind)
        try:
            return _on_gpus(bundle, threads, slots, kind, require_all=device == "cuda")
        except EngineError as error:
            if device == "auto":
                raise
            raise EngineError(f"the setting device asks for cuda, but {error}") from error

    def opened_on(on: Device) -> tuple[Sessions, Precision, str]:
        chosen, reason = choose_precision(precision, bundle, on)
        kinds: list[Precision] = [chosen]
        if precision == "auto" and chosen == "int8":
            kinds.append("float32")
        return _first_that_works(kinds, lambda kind: opened(on, kind), reason)

    devices, reason = choose_devices(device, precision)
    (result, kind, why), on, reason = _first_that_works(devices, opened_on, reason)
    _log.info("engine device=%s reason=%r", on, reason)
    _log.info("engine precision=%s reason=%r", kind, why)
    return result


def _first_that_works(
    candidates: list[Candidate], opened: Callable[[Candidate], Opened], reason: str
) -> tuple[Opened, Candidate, str]:
    """The result for the first candidate that works, that candidate, and why it was taken.

    The reason is the EngineError of the candidate before it, if there is one. Raises the error of
    the last.
    """
    *others, last = candidates
    for candidate in others:
        try:
            return opened(candidate), candidate, reason
        except EngineError as error:
            reason = str(error)
    return opened(last), last, reason


def _on_gpus(
    bundle: Bundle, threads: int, slots: int, precision: Precision, *, require_all: bool
) -> Sessions:
    """A checked session on each GPU, with a pool each.

    require_all: whether a GPU that does not work is an error; else it is skipped, unless there is
    no other. Raises EngineError.
    """
    usable = gpus()
    working: Sessions = []
    failures: list[str] = []
    for gpu in usable:
        try:
            session = Session(bundle, "cuda", threads, slots, precision, gpu=gpu.number)
            session.check()
        except MissingLibrariesError:  # the same for every GPU
            raise
        except EngineError as error:
            rest = "; this onnxruntime may have no code for it" if gpu.unsupported else ""
            failures.append(f"{gpu} does not work: {error}{rest}")
        else:
            _log.info("engine uses %s", gpu)
            working.append((session, []))
    if failures and (require_all or not working):
        if len(usable) > 1:
            failures.append("CUDA_VISIBLE_DEVICES says which GPUs are used")
        raise EngineError("; ".join(failures))
    for failure in failures:
        _log.warning("engine leaves out %s", failure)
    return working


def _on_cpu(
    bundle: Bundle, threads: int, sessions: int, slots: int, precision: Precision
) -> Sessions:
    """A checked session with all threads, and sessions that share them. Raises EngineError."""
    all_cores = Session(bundle, "cpu", threads, slots, precision)
    all_cores.check()
    count = threads or len(os.sched_getaffinity(0))
    parts = min(sessions or POLICY.sessions, count)
    if parts < 2:
        return [(all_cores, [])]
    threads_each = [count // parts + (n < count % parts) for n in range(parts)]
    with ThreadPoolExecutor(parts) as pool:
        opening = [
            pool.submit(Session, bundle, "cpu", share, slots, precision, all_cores)
            for share in threads_each
        ]
        shares = [each.result() for each in opening]
    for session in shares:
        session.check()
    return [(all_cores, shares)]


def _graph(bundle: Bundle, precision: Precision) -> Path:
    """The bundle's graph in a precision that was chosen for it."""
    int8 = byte_products.graph_int8(bundle)
    graphs = {"float32": bundle.graph, "float16": bundle.graph_float16, "int8": int8}
    graph = graphs[precision]
    assert graph is not None
    return graph


def _open(graph: Path, device: Device, threads: int, gpu: int) -> ort.InferenceSession:
    """Raises MissingLibrariesError, and the runtime's errors."""
    printed = ""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # idle threads would spin, on cores that answer requests or run another session
    options.add_session_config_entry("session.force_spinning_stop", "1")
    providers: list[str | tuple[str, dict[str, int]]] = ["CPUExecutionProvider"]
    if device == "cuda":
        printed = load_libraries()
        # TF32, the default, has 10 of float32's 23 bits: golden texts would be off by 4e-3 nats
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": gpu, "use_tf32": 0}))
    # no fallback here: the runtime would print its reason to standard output
    session = ort.InferenceSession(graph, options, providers=providers, enable_fallback=0)
    if len(session.get_providers()) < len(providers):
        raise MissingLibrariesError(printed)
    return session


def _lacks_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(part in str(error) for part in _NO_MEMORY)


def _line(error: Exception) -> str:
    """An error's message in one line."""
    return " ".join(str(error).split())
