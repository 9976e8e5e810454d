"""ONNX Runtime: choosing a device, holding the state pool, running flat batches."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when the runtime is imported

import onnxruntime as ort

from app.engine.binding import Binding
from app.engine.following import NOTHING_FOLLOWS, Following
from app.engine.outputs import Listed, Outputs
from app.engine.precision import PrecisionChoice, Wanted, choose_precision
from app.errors import EngineError
from model import byte_products
from model.bundle import Bundle
from model.graph import (
    LISTED,
    LISTED_TOP,
    LOGPROBS,
    NEXT_LOGPROBS,
    NEXT_PLACES,
    NEXT_TAILS,
    NO_ROWS,
    ROW_MULTIPLES,
    FlatBatch,
    Precision,
    empty_pools,
    whole_text,
)

Device = Literal["auto", "cpu", "cuda"]
Providers = list[str | tuple[str, dict[str, int]]]
_log = logging.getLogger(__name__)
_GOLDEN_TOLERANCE = 1e-3
"""Nats; far above rounding on any device in float32, far below a wrong weight."""
MAX_SESSIONS = 4
"""Sessions that a processor is divided among unasked; each holds the weights once more."""
_ROUNDED_GOLDEN_TOLERANCE = 0.08
"""The same on average in 8 bits and in float16."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A device and why it was taken."""

    device: Literal["cpu", "cuda"]
    reason: str


def choose(wanted: Device) -> Choice:
    """Where to run. Raises EngineError when CUDA is demanded and does not work."""
    if wanted == "cpu":
        return Choice("cpu", "the setting asks for it")
    problem = _cuda_problem()
    if problem is None:
        return Choice("cuda", "CUDA works")
    if wanted == "cuda":
        raise EngineError(f"the setting device asks for cuda, but {problem}")
    return Choice("cpu", problem)


def _cuda_problem() -> str | None:
    """Why CUDA cannot be used; asked without ONNX Runtime, which would log errors of its own."""
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return "this onnxruntime was built without CUDA"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver"
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return "the NVIDIA driver does not start"
    if count.value == 0:
        return "there is no NVIDIA GPU"
    return None


def _gpus() -> int:
    """GPUs that CUDA_VISIBLE_DEVICES leaves, where CUDA works."""
    count = ctypes.c_int(0)
    ctypes.CDLL("libcuda.so.1").cuDeviceGetCount(ctypes.byref(count))
    return count.value


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
    the GPU, if it runs on one.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        threads: int,
        slots: int,
        precision: Wanted = "float32",
        beside: Session | None = None,
        gpu: int = 0,
    ) -> None:
        config = bundle.config.model
        self.config, self.taps = config, config.taps
        alone = beside is None and not gpu  # what is like another says nothing of itself
        opened = _open(
            bundle, choose(device), threads, precision, gpu, fall_back=device == "auto", tell=alone
        )
        self._device, self.precision, self._session = opened
        self.multiple = ROW_MULTIPLES[self.precision]
        if beside is None:
            states = empty_pools(config, slots + 1, self.precision).items()
            place = self._device, gpu if self._device == "cuda" else 0
            self._pools = {n: ort.OrtValue.ortvalue_from_numpy(s, *place) for n, s in states}
        else:
            self._pools = beside._pools
        self.clusters = len(config.tails)
        following = [NEXT_LOGPROBS] + ([NEXT_PLACES, NEXT_TAILS] if self.clusters else [])
        least = int(self._device != "cpu")  # there, empty lists have not been tried
        self._scoring, self._following, self._listing = (
            Binding(self._session, config, self._pools, [LOGPROBS, *more], self.multiple, least)
            for more in ([], following, [*following, *LISTED])  # every output takes time
        )

    @property
    def device(self) -> str:
        """`cpu` or `cuda`."""
        return self._device

    @property
    def build(self) -> str:
        """What besides the bundle decides the bits of a result: runtime, device, processor."""
        runtime = f"onnxruntime {ort.__version__} {self._device}"
        return f"{runtime} {self.precision} {_processor()}"

    def run(self, batch: FlatBatch) -> Outputs:
        """States are read from and written to the pool. Raises EngineError."""
        binding = self._scoring
        if len(batch.list_rows):
            binding = self._listing
        elif len(batch.next_rows):
            binding = self._following
        try:
            found = binding.run(batch)
        except Exception as error:  # the runtime raises types of its own
            raise EngineError(f"the engine could not run a batch: {error}") from error
        following, listed = NOTHING_FOLLOWS, Listed.none()
        if NEXT_LOGPROBS in found:
            tails = [found[name] for name in (NEXT_PLACES, NEXT_TAILS) if self.clusters]
            following = Following(found[NEXT_LOGPROBS], self.config.tails, *tails)
        if LISTED_TOP in found:
            listed = Listed.of(*(found[name] for name in LISTED))
        return Outputs(found[LOGPROBS], following, listed)

    def check(self, bundle: Bundle) -> None:
        """Runs the bundle's golden texts. Raises EngineError when their scores are wrong."""
        for golden, alone in product(bundle.golden, (True, False)):
            batch = whole_text(golden.ids, self.taps, self.multiple)
            found = self.run(replace(batch, next_rows=NO_ROWS) if alone else batch).logprobs
            expected = golden.int8 if self.precision == "int8" else golden.logprobs
            off = np.abs(found[: len(golden.ids) - 1] - np.array(expected, np.float32))
            # in 8 bits a sum that differs in its last bit can fall to the next byte, and in
            # float16 sums are rounded in another order on every device
            exact = self.precision == "float32"
            worst = float(off.max() if exact else off.mean())
            if not worst <= (_GOLDEN_TOLERANCE if exact else _ROUNDED_GOLDEN_TOLERANCE):
                raise EngineError(
                    f"the engine's scores of a golden text are off by {worst:.2e} nats on "
                    f"{self.device} in {self.precision}"
                )


def open_sessions(
    bundle: Bundle,
    device: Device,
    threads: int,
    sessions: int,
    slots: int,
    precision: Wanted = "float32",
) -> list[tuple[Session, list[Session]]]:
    """For each device a session, and on a CPU several more that divide its threads.

    The sessions of a device share one pool. threads: 0 for one a core. sessions: how many divide
    them; 0 for one a thread, but at most MAX_SESSIONS. None is opened besides the first where one
    would have all threads. Raises EngineError when one of them scores a golden text wrongly.
    """
    whole = Session(bundle, device, threads, slots, precision)
    whole.check(bundle)
    if whole.device == "cuda":
        others = range(1, _gpus())
        return [(whole, []), *((_on_gpu(bundle, n, threads, slots, whole), []) for n in others)]
    count = threads or len(os.sched_getaffinity(0))
    parts = min(sessions or MAX_SESSIONS, count)
    if parts < 2:
        return [(whole, [])]
    shares = [count // parts + (n < count % parts) for n in range(parts)]
    with ThreadPoolExecutor(parts) as pool:
        opening = [
            pool.submit(Session, bundle, "cpu", share, slots, whole.precision, whole)
            for share in shares
        ]
        opened = [each.result() for each in opening]
    for session in opened:
        session.check(bundle)
    return [(whole, opened)]


def _on_gpu(bundle: Bundle, gpu: int, threads: int, slots: int, first: Session) -> Session:
    """A session like the first GPU's on another one, checked, with a pool of its own."""
    try:
        session = Session(bundle, "cuda", threads, slots, first.precision, gpu=gpu)
        session.check(bundle)
    except EngineError as error:
        remedy = "CUDA_VISIBLE_DEVICES says which GPUs are used"
        raise EngineError(f"GPU {gpu}: {error}; {remedy}") from error
    return session


def _open(
    bundle: Bundle,
    choice: Choice,
    threads: int,
    precision: Wanted,
    gpu: int,
    *,
    fall_back: bool,
    tell: bool,
) -> tuple[Literal["cpu", "cuda"], Precision, ort.InferenceSession]:
    """A session on the chosen device; on the CPU if CUDA fails and falling back is allowed.

    tell: whether the log says which it is.
    """
    if choice.device == "cuda" and fall_back and precision == "int8":
        choice = Choice("cpu", "8 bits are for the CPU")
    if choice.device == "cuda":
        wanted = choose_precision(precision, bundle, "cuda")
        try:
            ort.preload_dlls()
            cuda = ("CUDAExecutionProvider", {"device_id": gpu})
            providers: Providers = [cuda, "CPUExecutionProvider"]
            session = _session(_graph(bundle, wanted.precision), threads, providers)
            if "CUDAExecutionProvider" not in session.get_providers():
                raise EngineError("its libraries could not be loaded")
        except Exception as error:  # the runtime raises types of its own
            if not fall_back:
                raise EngineError(f"the setting device asks for cuda, but {error}") from error
            choice = Choice("cpu", f"CUDA failed: {error}")
        else:
            if tell:
                _report("cuda", choice.reason, wanted)
            return "cuda", wanted.precision, session
    wanted = choose_precision(precision, bundle, "cpu")
    if tell:
        _report("cpu", choice.reason, wanted)
    graph = _graph(bundle, wanted.precision)
    return "cpu", wanted.precision, _session(graph, threads, ["CPUExecutionProvider"])


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


def _report(device: str, reason: str, wanted: PrecisionChoice) -> None:
    _log.info("engine device=%s reason=%r", device, reason)
    _log.info("engine precision=%s reason=%r", wanted.precision, wanted.reason)


def _session(graph: Path, threads: int, providers: Providers) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # idle threads would spin on, on cores that answer requests or run another session
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return ort.InferenceSession(graph, options, providers=providers)
    except Exception as error:  # the runtime raises types of its own
        raise EngineError(f"the graph {graph} cannot be loaded: {error}") from error
