"""Starting on a GPU, and what is said when that fails: no GPU is needed, nothing is computed."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import onnx
import pytest

from app.settings import SHIPPED
from model.core import bundle
from tests.cuda.conftest import LIBRARIES, Scenario, rewrite


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_batches_run_without_cudnn_or_tf32_and_ask_for_little(
    scenario: Scenario, precision: str
) -> None:
    done = scenario("batches", precision=precision)
    assert not done.result["cudnn"]
    assert done.result["tf32"] == 0  # its 10 bits would fail the golden texts
    assert done.result["allocations"] == 0
    assert 0 < done.result["launches"] < 300
    assert done.result["copies_in"] <= 12
    assert done.errors == ""


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_all_but_shapes_is_computed_on_the_gpu_and_nothing_is_copied_between(
    scenario: Scenario, tmp_path: Path, precision: str
) -> None:
    nodes = scenario("placement", folder=tmp_path, precision=precision).result
    assert sum(nodes["CUDAExecutionProvider"].values()) > 500
    assert nodes["CPUExecutionProvider"].keys() <= {"Add", "Div", "Squeeze", "Shape"}
    assert not any(kind.startswith("Memcpy") for kinds in nodes.values() for kind in kinds)


def test_a_gpu_that_scores_wrongly_is_left_for_the_cpu_only_by_auto(scenario: Scenario) -> None:
    done = scenario("opened")
    assert done.result["devices"] == ["cpu"]
    reason = reason_in(done.log)
    assert "GPU 0 (Fake GPU, compute capability 9.0) does not work" in reason
    assert "scores of a golden text are off" in reason
    demanded = done.result["demanded"]
    assert demanded.startswith("the setting device asks for cuda, but GPU 0 (Fake GPU, compute ")
    assert "scores of a golden text are off" in demanded
    assert "\n" not in demanded
    assert done.errors == ""


def test_both_of_two_gpus_that_score_rightly_are_used_and_named(
    scenario: Scenario, scored_zero: Path
) -> None:
    done = scenario("opened", folder=scored_zero, variables="FAKE_GPUS=2")
    assert done.result["devices"] == ["cuda", "cuda"]
    assert done.result["demanded"] == ""
    first, second, *others = done.result["launches"]
    assert first == second > 0
    assert not any(others)
    assert "engine uses GPU 0 (Fake GPU, compute capability 9.0)" in done.log
    assert "engine uses GPU 1 (Other GPU, compute capability 9.0)" in done.log
    assert reason_in(done.log, "cuda") == "'CUDA works'"
    assert done.errors == ""  # no warnings of the runtime's


def test_a_gpu_that_the_runtime_has_no_code_for_is_named_with_its_capability(
    scenario: Scenario,
) -> None:
    done = scenario("opened", variables="FAKE_CAPABILITY=100")
    assert done.result["devices"] == ["cpu"]
    for told in (reason_in(done.log), done.result["demanded"]):
        assert "GPU 0 (Fake GPU, compute capability 10.0) does not work" in told
        assert "no kernel image" in told
        assert "this onnxruntime may have no code for it" in told


def test_of_two_gpus_auto_leaves_out_the_one_without_code_and_cuda_names_it(
    scenario: Scenario, scored_zero: Path
) -> None:
    two = "FAKE_GPUS=2 FAKE_OTHER_CAPABILITY=70"
    done = scenario("opened", folder=scored_zero, variables=two)
    assert done.result["devices"] == ["cuda"]
    assert "leaves out GPU 1 (Other GPU, compute capability 7.0)" in done.log
    demanded = done.result["demanded"]
    assert "GPU 1 (Other GPU, compute capability 7.0) does not work" in demanded
    assert "CUDA_VISIBLE_DEVICES" in demanded
    assert "GPU 0" not in demanded


def test_an_old_driver_is_named_with_the_one_that_is_needed(scenario: Scenario) -> None:
    done = scenario("opened", variables="FAKE_DRIVER=12040")
    reason = (
        "the NVIDIA driver supports CUDA 12.4, this onnxruntime needs 13.0: install driver 580 or "
        "newer"
    )
    assert done.result["devices"] == ["cpu"]
    assert reason_in(done.log) == repr(reason)
    assert done.result["demanded"] == f"the setting device asks for cuda, but {reason}"
    assert done.errors == ""


def test_a_machine_whose_gpus_are_hidden_says_that_there_is_none(scenario: Scenario) -> None:
    done = scenario("opened", variables="FAKE_GPUS=0")
    assert reason_in(done.log) == "'there is no NVIDIA GPU'"


def test_a_gpu_that_another_process_has_for_itself_is_told_of_in_the_log_alone(
    scenario: Scenario,
) -> None:
    """The runtime would print it, and go on on the CPU by itself."""
    done = scenario("opened", variables="FAKE_ERROR=46")
    assert done.result["devices"] == ["cpu"]
    assert "busy or unavailable" in reason_in(done.log)
    assert "busy or unavailable" in done.result["demanded"]


def test_libraries_that_are_missing_are_named_in_one_line(scenario: Scenario) -> None:
    missing = [name for name in LIBRARIES if not _loads(name)]
    if "libcublas.so.13" not in missing:
        pytest.skip("CUDA's libraries are installed here")
    done = scenario("opened", libraries_in="driver")
    assert done.result["devices"] == ["cpu"]
    reason = reason_in(done.log)
    assert all(name in reason for name in missing)
    assert "pip install '.[gpu]' brings them" in reason
    assert done.errors == ""


def test_too_little_memory_is_a_reason_to_take_the_cpu(scenario: Scenario) -> None:
    done = scenario("opened", variables="FAKE_MEMORY=1000000")
    assert done.result["devices"] == ["cpu"]
    assert "Failed to allocate memory" in reason_in(done.log)


def test_a_batch_that_does_not_fit_fails_alone(scenario: Scenario) -> None:
    done = scenario("out_of_memory")
    assert "Failed to allocate memory" in done.result["error"]
    assert "\n" not in done.result["error"]
    assert done.result["rows"] >= 64


def test_a_server_whose_gpu_dies_is_not_ready_after_three_batches(
    scenario: Scenario, scored_zero: Path
) -> None:
    done = scenario("dying", folder=scored_zero)
    assert done.result == [[200, 200], [500, 200], [500, 200], [503, 503], [503, 503]]
    assert "engine stopped: 3 batches failed, and the engine could not run a batch" in done.log
    assert "Traceback" not in done.log


def test_an_older_bundle_that_needs_cudnn_loads_and_says_so(
    scenario: Scenario, tmp_path: Path
) -> None:
    folder = tmp_path / "older"
    shutil.copytree(SHIPPED, folder)
    older = onnx.load(folder / bundle.GRAPH, load_external_data=False)
    (node,) = [node for node in older.graph.node if node.op_type == "TopK"]
    node.op_type = "ReduceMax"
    del node.attribute[:], node.output[1:]
    rewrite(folder / bundle.GRAPH, older.SerializeToString())
    done = scenario("opened", folder=folder)
    assert done.result["devices"] == ["cpu"]
    assert "cuDNN is unavailable" in reason_in(done.log)
    assert "cuDNN is unavailable" in done.result["demanded"]


def reason_in(log: str, device: str = "cpu") -> str:
    """Why the log says that a device was taken."""
    (line,) = [line for line in log.splitlines() if f"engine device={device} " in line][:1]
    return line.partition("reason=")[2]


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
