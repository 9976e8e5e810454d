"""ONNX Runtime: choosing a device, holding the state pool, running flat batches."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when the runtime is imported

import onnxruntime as ort

from app.errors import EngineError
from model.bundle import Bundle
from model.graph import (
    LOGPROBS,
    NEXT_LOGPROBS,
    FlatBatch,
    Floats,
    empty_pools,
    new_pool_name,
    pools,
    whole_text,
)

Device = Literal["auto", "cpu", "cuda"]
_log = logging.getLogger(__name__)
_GOLDEN_TOLERANCE = 1e-3
"""Nats; far above rounding on any device in float32, far below a wrong weight."""


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


def _processor() -> str:
    """The processor's name, as the kernel gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class Session:
    """The flat graph with its state pool, on one device.

    slots: states that the pool holds besides the scratch slot. threads: 0 for one a core.
    """

    def __init__(self, bundle: Bundle, device: Device, threads: int, slots: int) -> None:
        config = bundle.config.model
        self.config, self.taps = config, config.taps
        choice = choose(device)
        self._device, self._session = _open(bundle, choice, threads, fall_back=device == "auto")
        self._binding = self._session.io_binding()
        self._pools = []
        for name, states in empty_pools(config, slots + 1).items():
            pool = ort.OrtValue.ortvalue_from_numpy(states, self._device)
            # one value as input and output: a run touches only the rows of its own slots
            self._binding.bind_ortvalue_input(name, pool)
            self._binding.bind_ortvalue_output(new_pool_name(name), pool)
            self._pools.append(pool)

    @property
    def device(self) -> str:
        """`cpu` or `cuda`."""
        return self._device

    @property
    def build(self) -> str:
        """What besides the bundle decides the bits of a result: runtime, device, processor."""
        return f"onnxruntime {ort.__version__} {self._device} {_processor()}"

    def run(self, batch: FlatBatch) -> tuple[Floats, Floats]:
        """Log-probabilities of the scored rows, float32 [N], and of every next token, [M, V].

        States are read from and written to the pool. Raises EngineError.
        """
        binding = self._binding
        for name, array in batch.feeds(self.config).items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        binding.bind_output(LOGPROBS, "cpu")
        binding.bind_output(NEXT_LOGPROBS, "cpu")
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # the runtime raises types of its own
            raise EngineError(f"the engine could not run a batch: {error}") from error
        found = {
            name: value
            for name, value in zip(self._outputs, binding.get_outputs(), strict=True)
            if name in (LOGPROBS, NEXT_LOGPROBS)
        }
        return found[LOGPROBS].numpy(), found[NEXT_LOGPROBS].numpy()

    @property
    def _outputs(self) -> list[str]:
        """Output names in the order in which they were bound."""
        states = [new_pool_name(name) for name in pools(self.config)]
        return [*states, LOGPROBS, NEXT_LOGPROBS]

    def check(self, bundle: Bundle) -> None:
        """Runs the bundle's golden texts. Raises EngineError when their scores are wrong."""
        for golden in bundle.golden:
            found, _ = self.run(whole_text(golden.ids, self.taps))
            worst = float(np.abs(found - np.array(golden.logprobs, np.float32)).max())
            if not worst <= _GOLDEN_TOLERANCE:
                raise EngineError(
                    f"the engine's scores of a golden text are off by {worst:.2e} nats on "
                    f"{self.device}"
                )


def _open(
    bundle: Bundle, choice: Choice, threads: int, *, fall_back: bool
) -> tuple[Literal["cpu", "cuda"], ort.InferenceSession]:
    """A session on the chosen device; on the CPU if CUDA fails and falling back is allowed."""
    if choice.device == "cuda":
        try:
            ort.preload_dlls()
            session = _session(bundle, threads, ["CUDAExecutionProvider", "CPUExecutionProvider"])
            if "CUDAExecutionProvider" not in session.get_providers():
                raise EngineError("its libraries could not be loaded")
        except Exception as error:  # the runtime raises types of its own
            if not fall_back:
                raise EngineError(f"the setting device asks for cuda, but {error}") from error
            choice = Choice("cpu", f"CUDA failed: {error}")
        else:
            _log.info("engine device=cuda reason=%r", choice.reason)
            return "cuda", session
    _log.info("engine device=cpu reason=%r", choice.reason)
    return "cpu", _session(bundle, threads, ["CPUExecutionProvider"])


def _session(bundle: Bundle, threads: int, providers: list[str]) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(bundle.graph, options, providers=providers)
    except Exception as error:  # the runtime raises types of its own
        raise EngineError(f"the graph of {bundle.folder} cannot be loaded: {error}") from error
