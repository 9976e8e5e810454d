"""ONNX Runtime's own CUDA provider over a CUDA that computes nothing (`fake_cuda.c`)."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from app.settings import SHIPPED
from model.core import bundle

ROOT = Path(__file__).parents[2]
LIBRARIES = ("libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10")
DRIVER = "libcuda.so.1"


def _missing() -> str | None:
    """Why these tests cannot run here."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return "the CUDA provider is tested on Linux x86-64"
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return "this onnxruntime was built without CUDA"
    if not ort.cuda_version.startswith("13."):
        return f"the fake CUDA is a CUDA 13, this onnxruntime needs {ort.cuda_version}"
    if shutil.which("cc") is None:
        return "there is no C compiler (cc)"
    return None


@dataclass(frozen=True)
class Done:
    """What a scenario gave, what it logged, and what it wrote to its standard error."""

    result: dict[str, Any]
    log: str
    errors: str


Scenario = Callable[..., Done]


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all libraries that the CUDA provider is linked with, the driver's in `driver`."""
    if problem := _missing():
        pytest.skip(problem)
    folder = tmp_path_factory.mktemp("fake-cuda")
    (folder / "driver").mkdir()
    made = folder / "libfake_cuda.so"
    source = Path(__file__).parent / "fake_cuda.c"
    flags = ["-shared", "-fPIC", "-Wno-builtin-declaration-mismatch", "-pthread"]
    command = ["cc", *flags, "-o", str(made), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in (*LIBRARIES, DRIVER, f"driver/{DRIVER}"):
        (folder / name).symlink_to(made)
    return folder


@pytest.fixture(scope="session")
def scenario(libraries: Path, tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """Runs a function of `scenarios.py` in a process of its own, on the fake CUDA."""

    def run(name: str, *, libraries_in: str = ".", variables: str = "", **arguments: Any) -> Done:
        """variables: those of `fake_cuda.c`, as `NAME=1 OTHER=2`."""
        out = tmp_path_factory.mktemp(name) / "result.json"
        environment = {
            **{key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"},
            **dict(pair.split("=") for pair in variables.split()),
            "LD_LIBRARY_PATH": str(libraries / libraries_in),
            "PYTHONPATH": str(ROOT),
        }
        script = str(Path(__file__).parent / "scenarios.py")
        done = subprocess.run(
            [sys.executable, script, name, str(out), json.dumps(arguments, default=str)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""  # what commands print there is their result
        found = json.loads(out.read_text())
        return Done(found["result"], found["log"], done.stderr)

    return run


@pytest.fixture(scope="session")
def scored_zero(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped bundle, with the scores that the fake CUDA gives for its golden texts: zeros."""
    folder = tmp_path_factory.mktemp("bundles") / "zero"
    shutil.copytree(SHIPPED, folder)
    golden = json.loads((SHIPPED / bundle.GOLDEN).read_text())
    zeros = [{**text, "logprobs": [0.0] * len(text["logprobs"])} for text in golden]
    rewrite(folder / bundle.GOLDEN, json.dumps(zeros).encode())
    return folder


def rewrite(path: Path, content: bytes) -> None:
    """Replaces a file of a bundle, and its checksum."""
    path.write_bytes(content)
    sums_path = path.parent / bundle.CHECKSUMS
    sums = json.loads(sums_path.read_text())
    sums[path.name] = hashlib.sha256(content).hexdigest()
    sums_path.write_text(json.dumps(sums))
