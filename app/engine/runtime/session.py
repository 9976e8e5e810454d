"""ONNX Runtime: opening sessions that work, holding the state pool, running flat batches."""

from __future__ import annotations

import logging
import math
import os
import platform
from collections.abc import Callable
from collections.abc import Sequence as Many
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TypeVar

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when the runtime is imported

import onnxruntime as ort

from app.engine.runtime.binding import Binding
from app.engine.runtime.devices import Device, MissingLibrariesError, Place, gpus, load_libraries
from app.engine.runtime.outputs import Listed, Outputs
from app.engine.runtime.precision import PrecisionChoice, Wanted, choose_precision
from app.engine.sampling.distributions import NOTHING_FOLLOWS, Following
from app.errors import EngineError
from model.core import byte_products
from model.core.bundle import Bundle
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

Candidate = TypeVar("Candidate", bound=str)
Opened = TypeVar("Opened")
Sessions = list[tuple["Session", list["Session"]]]
"""For each device a session, and those that divide its threads."""

_log = logging.getLogger(__name__)
_GOLDEN_TOLERANCES: dict[Precision, tuple[float, float]] = {
    # far above rounding on any device, far below a wrong weight
    "float32": (1e-3, 1e-3),
    # sums are rounded in another order on every device; on a CPU an export may be off by 0.02 on
    # average (`parity.HALF_TOLERANCE`), the shipped model is by 0.001, and by 0.0035 at most
    "float16": (0.03, 0.15),
    # a sum that differs in its last bit can fall to the next byte
    "int8": (0.08, math.inf),
}
"""Nats by which scores of a golden text may be off, on average and at most."""
MAX_SESSIONS = 4
"""Sessions that a processor is divided among unasked; each holds the weights once more."""

ort.set_default_logger_severity(3)  # its warnings are of no use to whoever runs a server


def _processor() -> str:
    """The processor's name, as the kernel gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class Session:
    """The flat graph with its state pool, on one device. One thread at a time runs batches.

    slots: states that the pool holds besides the scratch slot. threads: 0 for one a core.
    beside: a session of the same bundle, device and precision, whose pool this one shares. Both
    may run at a time, on batches that write to none of the slots of each other. gpu: the number of
    the GPU, if it runs on one. Raises EngineError when the session cannot be opened.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: Place,
        threads: int,
        slots: int,
        precision: Precision = "float32",
        beside: Session | None = None,
        gpu: int = 0,
    ) -> None:
        config = bundle.config.model
        self.device, self.precision = device, precision
        self.config, self.taps = config, config.taps
        self.multiple, self.clusters = ROW_MULTIPLES[precision], len(config.tails)
        self._golden = bundle.golden
        graph = _graph(bundle, precision)
        try:
            session = _session(graph, device, threads, gpu)
            if beside is None:
                states = empty_pools(config, slots + 1, precision).items()
                place = device, gpu
                self._pools = {n: ort.OrtValue.ortvalue_from_numpy(s, *place) for n, s in states}
            else:
                self._pools = beside._pools
        except MissingLibrariesError:
            raise
        except Exception as error:  # the runtime raises types of its own
            raise EngineError(f"the graph {graph} cannot be loaded: {_line(error)}") from error
        following = [NEXT_LOGPROBS] + ([NEXT_TAIL_ROWS, NEXT_TAILS] if self.clusters else [])
        least = int(device != "cpu")  # there, empty lists have not been tried
        self._scoring, self._following, self._listing = (
            Binding(session, config, self._pools, [LOGPROBS, *more], self.multiple, least)
            # every output takes time
            for more in ([], following, [*following, *ALTERNATIVE_OUTPUTS])
        )

    @property
    def build(self) -> str:
        """What besides the bundle decides the bits of a result: runtime, device, processor."""
        runtime = f"onnxruntime {ort.__version__} {self.device}"
        return f"{runtime} {self.precision} {_processor()}"

    def run(self, batch: FlatBatch) -> Outputs:
        """States are read from and written to the pool. Raises EngineError."""
        binding = self._scoring
        if len(batch.alternative_rows):
            binding = self._listing
        elif len(batch.next_rows):
            binding = self._following
        try:
            found = binding.run(batch)
        except Exception as error:  # the runtime raises types of its own
            raise EngineError(f"the engine could not run a batch: {_line(error)}") from error
        following, listed = NOTHING_FOLLOWS, Listed.none()
        if NEXT_LOGPROBS in found:
            tails = [found[name] for name in (NEXT_TAIL_ROWS, NEXT_TAILS) if self.clusters]
            following = Following(found[NEXT_LOGPROBS], self.config.tails, *tails)
        if ALTERNATIVE_LOGPROBS in found:
            listed = Listed.of(*(found[name] for name in ALTERNATIVE_OUTPUTS))
        return Outputs(found[LOGPROBS], following, listed)

    def check(self) -> None:
        """Runs the bundle's golden texts. Raises EngineError when their scores are wrong."""
        # the distribution behind one row is wanted too, or none: in an adaptive softmax the lowest
        # id is in the head, and the highest in a tail
        for golden, chosen in product(self._golden, (np.argmin, np.argmax, None)):
            targets = golden.ids[1:]
            row = None if chosen is None else int(chosen(targets))
            wanted = NO_ROWS if row is None else pad([row], 0, self.multiple)
            batch = whole_text(golden.ids, self.taps, self.multiple)
            outputs = self.run(replace(batch, next_rows=wanted))
            scores = golden.int8 if self.precision == "int8" else golden.logprobs
            found, expected = outputs.logprobs[: len(targets)], np.array(scores, np.float32)
            if row is not None:
                found = np.append(found, _logprob(outputs.following, targets[row]))
                expected = np.append(expected, expected[row])
            off = np.abs(found - expected)
            mean, worst = float(off.mean()), float(off.max())
            most = _GOLDEN_TOLERANCES[self.precision]
            if not (mean <= most[0] and worst <= most[1]):  # nor where one is no number
                raise EngineError(
                    f"the engine's scores of a golden text are off by {mean:.2e} nats on average, "
                    f"{worst:.2e} at most, on {self.device} in {self.precision}"
                )


def open_sessions(
    bundle: Bundle,
    device: Device,
    threads: int,
    sessions: int,
    slots: int,
    precision: Wanted = "float32",
) -> Sessions:
    """For each GPU a session, or one for the CPU and several more that divide its threads.

    The sessions of a device share one pool. threads: 0 for one a core. sessions: how many divide
    them; 0 for one a thread, but at most MAX_SESSIONS. None is opened besides the first where one
    would have all threads.

    What is open has scored the golden texts rightly. If that fails, `auto` as device falls back to
    the CPU, and `auto` as precision from 8 bits to float32; the log has the reasons. Raises
    EngineError when nothing is left to fall back to.
    """

    def opened(place: Place, kind: Precision) -> Sessions:
        if place == "cpu":
            return _on_cpu(bundle, threads, sessions, slots, kind)
        try:
            return _on_gpus(bundle, threads, slots, kind, all_of_them=device == "cuda")
        except EngineError as error:
            if device == "auto":
                raise
            raise EngineError(f"the setting device asks for cuda, but {error}") from error

    def on(place: Place) -> tuple[Sessions, PrecisionChoice]:
        choice = choose_precision(precision, bundle, place)
        kinds: list[Precision] = [choice.precision]
        if precision == "auto" and choice.precision == "int8":
            kinds.append("float32")
        found, kind, reason = _first_that_works(kinds, lambda k: opened(place, k), choice.reason)
        return found, PrecisionChoice(kind, reason)

    places: list[Place] = ["cuda", "cpu"] if device == "auto" else [device]
    why = "the setting asks for it" if device == "cpu" else "CUDA works"
    if device == "auto" and precision == "int8":
        places, why = ["cpu"], "8 bits are for the CPU"
    (found, choice), place, why = _first_that_works(places, on, why)
    _log.info("engine device=%s reason=%r", place, why)
    _log.info("engine precision=%s reason=%r", choice.precision, choice.reason)
    return found


def _first_that_works(
    candidates: Many[Candidate], opened: Callable[[Candidate], Opened], why: str
) -> tuple[Opened, Candidate, str]:
    """What opens for the first candidate that does, that candidate, and why it was taken: `why`, or
    the EngineError of the candidate before it. Raises that of the last."""
    *others, last = candidates
    for candidate in others:
        try:
            return opened(candidate), candidate, why
        except EngineError as error:
            why = str(error)
    return opened(last), last, why


def _on_gpus(
    bundle: Bundle, threads: int, slots: int, precision: Precision, *, all_of_them: bool
) -> Sessions:
    """A checked session on each GPU, with a pool of its own.

    all_of_them: whether a GPU that does not work is an error; else it is left out, unless there is
    no other. Raises EngineError.
    """
    found = gpus()
    working: Sessions = []
    failures: list[str] = []
    for gpu in found:
        try:
            session = Session(bundle, "cuda", threads, slots, precision, gpu=gpu.number)
            session.check()
        except MissingLibrariesError:  # on no GPU then
            raise
        except EngineError as error:
            rest = "; this onnxruntime may have no code for it" if gpu.unsupported else ""
            failures.append(f"{gpu} does not work: {error}{rest}")
        else:
            _log.info("engine uses %s", gpu)
            working.append((session, []))
    if failures and (all_of_them or not working):
        if len(found) > 1:
            failures.append("CUDA_VISIBLE_DEVICES says which GPUs are used")
        raise EngineError("; ".join(failures))
    for failure in failures:
        _log.warning("engine leaves out %s", failure)
    return working


def _on_cpu(
    bundle: Bundle, threads: int, sessions: int, slots: int, precision: Precision
) -> Sessions:
    """A checked session with all threads, and those that divide them. Raises EngineError."""
    whole = Session(bundle, "cpu", threads, slots, precision)
    whole.check()
    count = threads or len(os.sched_getaffinity(0))
    parts = min(sessions or MAX_SESSIONS, count)
    if parts < 2:
        return [(whole, [])]
    shares = [count // parts + (n < count % parts) for n in range(parts)]
    with ThreadPoolExecutor(parts) as pool:
        opening = [
            pool.submit(Session, bundle, "cpu", share, slots, precision, whole) for share in shares
        ]
        opened = [each.result() for each in opening]
    for session in opened:
        session.check()
    return [(whole, opened)]


def _graph(bundle: Bundle, precision: Precision) -> Path:
    """The bundle's graph in a precision that was chosen for it."""
    graphs: dict[Precision, Path | None] = {
        "float32": bundle.graph,
        "float16": bundle.graph_float16,
        "int8": byte_products.graph_int8(bundle),
    }
    graph = graphs[precision]
    assert graph is not None
    return graph


def _session(graph: Path, device: Place, threads: int, gpu: int) -> ort.InferenceSession:
    """Raises MissingLibrariesError, and what the runtime raises."""
    printed = ""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # idle threads would spin on, on cores that answer requests or run another session
    options.add_session_config_entry("session.force_spinning_stop", "1")
    providers: list[str | tuple[str, dict[str, int]]] = ["CPUExecutionProvider"]
    if device == "cuda":
        printed = load_libraries()
        # TF32, the default, has 10 of float32's 23 bits: golden texts would be off by 4e-3 nats
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": gpu, "use_tf32": 0}))
    # falling back is decided here: the runtime would print its reason to standard output
    session = ort.InferenceSession(graph, options, providers=providers, enable_fallback=0)
    if len(session.get_providers()) < len(providers):
        raise MissingLibrariesError(printed)
    return session


def _logprob(following: Following, token: int) -> float:
    """A token's log-probability in the first row; no number where its tail was left out."""
    try:
        return following.logprob(0, token)
    except KeyError:
        return math.nan


def _line(error: Exception) -> str:
    """A message of the runtime's in one line."""
    return " ".join(str(error).split())
