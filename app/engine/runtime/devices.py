"""Which devices to try, in which precision, which GPUs there are, and why CUDA cannot be used.

This asks NVIDIA's driver itself: ONNX Runtime would log errors without a helpful reason.
"""

from __future__ import annotations

import ctypes
import io
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Literal

import onnxruntime as ort

from app.errors import EngineError
from model.core import byte_products
from model.core.bundle import MAX_INT8_PERPLEXITY_RATIO, Bundle
from model.core.graph import Precision

Device = Literal["cpu", "cuda"]
"""Where a session runs."""
WantedDevice = Literal["auto", "cpu", "cuda"]
"""`auto` takes the CPU if CUDA does not work."""
WantedPrecision = Literal["auto", "float32", "float16", "int8"]

_DRIVERS = {12: 525, 13: 580}
"""The first Linux driver that runs programs of a major version of CUDA (CUDA's release notes)."""
_COMPILED_FOR = {7: 5, 8: 0, 9: 0, 12: 0}
"""The least minor compute capability, by the major one, that onnxruntime-gpu 1.31.1 has code for.

`libonnxruntime_providers_cuda.so` of that version, a build for CUDA 13.0, holds code for sm_75, 80,
86, 89, 90 and 120, which runs on GPUs of the same major and no smaller minor capability. It holds
no PTX, which the driver could compile for other GPUs. Other versions may differ, so this explains a
failure and refuses no GPU.
"""
_NO_DEVICE = 100
_MAJOR, _MINOR = 75, 76
"""Numbers of CUDA's driver interface: an error, and two attributes of a device."""


def choose_devices(wanted: WantedDevice, precision: WantedPrecision) -> tuple[list[Device], str]:
    """The devices to try, in this order, and why the first is taken if it works."""
    if wanted == "cpu":
        return ["cpu"], "the setting asks for it"
    if wanted == "auto" and precision == "int8":
        return ["cpu"], "8 bits are for the CPU"
    return ["cuda", "cpu"] if wanted == "auto" else ["cuda"], "CUDA works"


def choose_precision(
    wanted: WantedPrecision, bundle: Bundle, device: Device
) -> tuple[Precision, str]:
    """The precision to compute in, and why. Raises EngineError if the wanted one is missing."""
    if wanted == "float16" and bundle.graph_float16 is None:
        raise EngineError(
            "the setting precision asks for float16, but the bundle has no graph in float16; "
            "export it again"
        )
    if wanted in ("float32", "float16"):
        return wanted, "the setting asks for it"
    problem = _int8_problem(bundle, device)
    if problem is None and wanted == "auto":
        ratio = bundle.config.int8_perplexity_ratio
        if ratio is None or ratio > MAX_INT8_PERPLEXITY_RATIO:
            problem = f"the bundle states a perplexity in 8 bits of {ratio} times that in float32"
    if problem is None:
        return "int8", "the fastest that the bundle and the processor allow"
    if wanted == "int8":
        raise EngineError(f"the setting precision asks for int8, but {problem}")
    return "float32", problem


def _int8_problem(bundle: Bundle, device: Device) -> str | None:
    """Why 8 bits cannot be used."""
    if bundle.graph_int8 is None:
        return "the bundle has no graph in 8 bits"
    if device == "cuda":
        return "it is for the CPU only"
    if byte_products.graph_int8(bundle) is None:
        return (
            "this processor has no VNNI instructions, and the bundle's graph in 8 bits needs them; "
            "export it again"
        )
    return None


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that CUDA can see. number: as CUDA counts. capability: major and minor."""

    number: int
    name: str
    capability: tuple[int, int]

    def __str__(self) -> str:
        major, minor = self.capability
        return f"GPU {self.number} ({self.name}, compute capability {major}.{minor})"

    @property
    def unsupported(self) -> bool:
        """Whether the version of ONNX Runtime that `_COMPILED_FOR` describes has no code for it."""
        major, minor = self.capability
        return minor < _COMPILED_FOR.get(major, minor + 1)


class MissingLibrariesError(EngineError):
    """ONNX Runtime has no CUDA, since libraries that it is linked with do not load."""

    def __init__(self, printed: str) -> None:
        names = [name for name in (*_libraries(), "libcurand.so.10") if not _loads(name)]
        listed = ", ".join(names) or " ".join(printed.split())
        remedy = "pip install '.[gpu]' brings them"
        super().__init__(f"these libraries of CUDA do not load: {listed}; {remedy}")


def gpus() -> list[Gpu]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves. Raises EngineError if CUDA cannot be used."""
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise EngineError("this onnxruntime was built without CUDA")
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise EngineError("there is no NVIDIA driver") from None
    _check_version(driver)
    if error := driver.cuInit(0):
        if error == _NO_DEVICE:
            raise EngineError("there is no NVIDIA GPU")
        raise EngineError(f"the NVIDIA driver does not start: error {error}")
    count = ctypes.c_int()
    if error := driver.cuDeviceGetCount(ctypes.byref(count)):
        raise EngineError(f"the NVIDIA driver does not count its GPUs: error {error}")
    if not count.value:
        raise EngineError("there is no NVIDIA GPU")
    return [_gpu(driver, number) for number in range(count.value)]


def _check_version(driver: ctypes.CDLL) -> None:
    """Raises EngineError if the driver is older than the CUDA that ONNX Runtime was built with.

    A driver runs programs of its major version, whatever their minor version.
    """
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)):
        return
    major, minor = version.value // 1000, version.value % 1000 // 10
    needed = _cuda_major()
    if major < needed:
        first = f": install driver {_DRIVERS[needed]} or newer" if needed in _DRIVERS else ""
        raise EngineError(
            f"the NVIDIA driver supports CUDA {major}.{minor}, this onnxruntime needs "
            f"{ort.cuda_version}{first}"
        )


def _cuda_major() -> int:
    """The major version of the CUDA that ONNX Runtime was built with; 0 if unknown."""
    return int(ort.cuda_version.partition(".")[0] or 0)


def _gpu(driver: ctypes.CDLL, number: int) -> Gpu:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    major, minor = ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), number)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    return Gpu(number, name.value.decode(errors="replace"), (major.value, minor.value))


def load_libraries() -> str:
    """Loads CUDA's libraries from installed packages or the system.

    Returns ONNX Runtime's messages, which it would print to standard output. Raises
    MissingLibrariesError, before ONNX Runtime can log an error itself.
    """
    with redirect_stdout(io.StringIO()) as printed:
        ort.preload_dlls(cudnn=False)
    if not all(map(_loads, _libraries())):
        raise MissingLibrariesError(printed.getvalue())
    return printed.getvalue()


def _libraries() -> list[str]:
    """Names of libraries that contain CUDA's major version."""
    major = _cuda_major()
    names = ("libcudart", "libcublas", "libcublasLt")
    return [f"{name}.so.{major}" for name in names] if major else []


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
