"""Choosing a device, and a bundle's own check at load."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from app.engine.planner import Piece, Step, plan
from app.engine.runtime import session as module
from app.engine.runtime.devices import Gpu, WantedDevice, WantedPrecision
from app.engine.runtime.session import Session, open_sessions
from app.errors import EngineError
from model.core.bundle import Bundle
from model.core.flat_batch import FlatBatch, TailTerms
from model.core.graph import NEXT_LOGPROBS, NEXT_TAIL_ROWS, NEXT_TAILS


class OnGpu:
    """Stands for a session on a GPU, of which those in `broken` do not work."""

    device = "cuda"
    broken: ClassVar[set[int]] = set()
    wrong_in: ClassVar[set[str]] = set()
    """Precisions in which golden texts are scored wrongly, on a CPU."""

    def __init__(self, bundle: Bundle, device: str, *arguments: Any, gpu: int = 0) -> None:
        self.device, self.gpu = device, gpu
        self.precision = arguments[2]

    def check(self) -> None:
        if self.device == "cuda" and self.gpu in self.broken:
            raise EngineError("out of memory")
        if self.device == "cpu" and self.precision in self.wrong_in:
            raise EngineError(f"scores are off in {self.precision}")


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> type[OnGpu]:
    """Two GPUs, and no real session."""

    class Found(OnGpu):
        broken: ClassVar[set[int]] = set()
        wrong_in: ClassVar[set[str]] = set()

    monkeypatch.setattr(module, "Session", Found)
    monkeypatch.setattr(module, "gpus", lambda: [Gpu(n, f"Card {n}", (8, 0)) for n in range(2)])
    return Found


def opened(
    bundle: Bundle, device: WantedDevice, precision: WantedPrecision = "float32"
) -> list[tuple[str, int, str]]:
    """Where and in what sessions are opened."""
    sessions = open_sessions(bundle, device, 1, 0, 8, precision)
    assert all(parts == [] for _, parts in sessions)
    return [(s.device, s.gpu, s.precision) for s, _ in sessions]  # type: ignore[attr-defined]


def no_driver() -> list[Gpu]:
    raise EngineError("there is no NVIDIA driver")


def test_without_a_gpu_auto_takes_the_cpu_and_says_why(
    tiny: Bundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "gpus", no_driver)
    with caplog.at_level(logging.INFO):
        ((session, _),) = open_sessions(tiny, "auto", 1, 1, 8)
    assert session.device == "cpu"
    assert "device=cpu reason='there is no NVIDIA driver'" in caplog.text


def test_demanding_cuda_without_it_is_an_error_with_the_reason(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "gpus", no_driver)
    with pytest.raises(EngineError, match="asks for cuda, but there is no NVIDIA driver"):
        open_sessions(tiny, "cuda", 1, 1, 8)


def test_a_gpu_that_scores_wrongly_is_left_for_the_cpu_only_by_auto(
    tiny: Bundle, on_gpu: type[OnGpu], caplog: pytest.LogCaptureFixture
) -> None:
    on_gpu.broken = {0, 1}
    with caplog.at_level(logging.INFO):
        assert opened(tiny, "auto") == [("cpu", 0, "float32")]
    assert "device=cpu reason='GPU 0 (Card 0, compute capability 8.0) does not work" in caplog.text
    with pytest.raises(EngineError, match=r"asks for cuda, but GPU 0 .* out of memory"):
        opened(tiny, "cuda")


def test_every_gpu_gets_a_session(tiny: Bundle, on_gpu: type[OnGpu]) -> None:
    everywhere = [("cuda", 0, "float32"), ("cuda", 1, "float32")]
    assert opened(tiny, "auto") == opened(tiny, "cuda") == everywhere


@pytest.mark.parametrize("bad", [0, 1])
def test_one_bad_gpu_of_several_is_left_out_by_auto_and_named(
    tiny: Bundle, on_gpu: type[OnGpu], caplog: pytest.LogCaptureFixture, bad: int
) -> None:
    on_gpu.broken = {bad}
    assert opened(tiny, "auto") == [("cuda", 1 - bad, "float32")]
    assert f"leaves out GPU {bad} (Card {bad}" in caplog.text
    with pytest.raises(EngineError, match=f"GPU {bad} .*out of memory; CUDA_VISIBLE_DEVICES"):
        opened(tiny, "cuda")


def test_a_gpu_that_may_have_no_code_in_the_runtime_says_so(
    tiny: Bundle, on_gpu: type[OnGpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu.broken = {0}
    monkeypatch.setattr(module, "gpus", lambda: [Gpu(0, "Tesla V100", (7, 0))])
    with pytest.raises(EngineError, match=r"V100, compute capability 7\.0.*may have no code"):
        opened(tiny, "cuda")


@pytest.mark.parametrize(
    ("capability", "unsupported"),
    [
        *(((7, 0), True), ((7, 5), False), ((8, 0), False), ((8, 9), False), ((9, 0), False)),
        *(((6, 1), True), ((10, 0), True), ((10, 3), True), ((12, 0), False), ((12, 1), False)),
    ],
)
def test_capabilities_that_the_runtime_has_code_for(
    capability: tuple[int, int], unsupported: bool
) -> None:
    assert Gpu(0, "", capability).unsupported == unsupported


def test_8_bits_run_on_the_cpu_though_there_is_a_gpu(
    tiny: Bundle, on_gpu: type[OnGpu], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert opened(tiny, "auto", "int8") == [("cpu", 0, "int8")]
    assert "device=cpu reason='8 bits are for the CPU'" in caplog.text
    with pytest.raises(EngineError, match=r"^the setting precision asks for int8, but it is for"):
        opened(tiny, "cuda", "int8")


def test_8_bits_that_score_wrongly_on_this_processor_are_left_for_float32_only_by_auto(
    tiny: Bundle, on_gpu: type[OnGpu], caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny.config.model_copy(update={"int8_perplexity_ratio": 1.0})
    cheap = dataclasses.replace(tiny, config=config)
    assert opened(cheap, "cpu", "auto") == [("cpu", 0, "int8")]
    on_gpu.wrong_in, on_gpu.broken = {"int8"}, {0, 1}
    with caplog.at_level(logging.INFO):
        assert opened(cheap, "auto", "auto") == [("cpu", 0, "float32")]
    assert "precision=float32 reason='scores are off in int8'" in caplog.text
    assert "device=cpu reason='GPU 0 (Card 0" in caplog.text
    with pytest.raises(EngineError, match="off in int8"):
        opened(cheap, "cpu", "int8")
    on_gpu.wrong_in = {"int8", "float32"}
    with pytest.raises(EngineError, match="off in float32"):
        opened(cheap, "cpu", "auto")


def test_a_graph_that_cannot_be_loaded_is_an_error_with_its_place(
    tiny: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineError, match="cannot be loaded"):
        Session(dataclasses.replace(tiny, folder=tmp_path), "cpu", 1, slots=1)


def test_golden_texts_are_scored_right(tiny: Bundle) -> None:
    Session(tiny, "cpu", 1, slots=1).check()


def test_wrong_scores_of_golden_texts_are_noticed(tiny: Bundle) -> None:
    golden = tiny.golden[0].model_copy(
        update={"logprobs": [p - 0.01 for p in tiny.golden[0].logprobs]}
    )
    with pytest.raises(EngineError, match="golden"):
        Session(dataclasses.replace(tiny, golden=[golden]), "cpu", 1, slots=1).check()


def test_inputs_that_could_not_be_bound_are_not_taken_for_the_next_step(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (plan([Step(5, slot, 0)], tiny.config.model.taps) for slot in (1, 2))
    disturbed, plain = (Session(tiny, "cpu", 1, slots=2) for _ in range(2))
    disturbed.run(one)
    feeds = FlatBatch.feeds

    def broken(self: FlatBatch, *args: Any) -> dict[str, Any]:
        return feeds(self, *args) | {"carry": np.zeros((1, 1), np.complex64)}

    monkeypatch.setattr(FlatBatch, "feeds", broken)
    with pytest.raises(EngineError):
        disturbed.run(other)
    monkeypatch.undo()
    plain.run(one)
    got, expected = (
        session.run(one).next_distributions.full([0]) for session in (disturbed, plain)
    )
    np.testing.assert_array_equal(got, expected)


def test_what_was_bound_before_a_failure_is_bound_again(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime reads memory that nobody holds any more, if it is not."""
    session = Session(tiny, "cpu", 1, slots=4)
    steps, other = (
        plan([Step(5, slot, 0) for slot in slots], session.taps) for slots in ((1, 2, 3), (4,))
    )
    addresses, *others = steps.addresses
    doubled = np.concatenate([addresses.carry, addresses.carry], axis=1)
    carry = doubled[:, : addresses.carry.shape[1]]  # not in one piece: a copy is bound
    carried = dataclasses.replace(addresses, carry=carry)
    steps = dataclasses.replace(steps, addresses=(carried, *others))
    session.run(steps)
    feeds = FlatBatch.feeds

    def broken(self: FlatBatch, *args: Any) -> dict[str, Any]:
        return feeds(self, *args) | {"carry": np.zeros((1, 1), np.complex64)}

    monkeypatch.setattr(FlatBatch, "feeds", broken)
    with pytest.raises(EngineError):
        session.run(other)
    monkeypatch.undo()
    again: list[str] = []
    binding = session._for_distributions.io
    bind = binding.bind_cpu_input

    def bound(name: str, array: npt.NDArray[Any]) -> None:
        again.append(name)
        bind(name, array)

    monkeypatch.setattr(binding, "bind_cpu_input", bound)
    session.run(steps)
    assert "carry" in again


def test_scores_alone_are_checked_too(tiny: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(tiny, "cpu", 1, slots=1)
    read = session._for_scores.outputs
    monkeypatch.setattr(
        session._for_scores, "outputs", lambda: {n: x + 1 for n, x in read().items()}
    )
    with pytest.raises(EngineError, match="golden"):
        session.check()


@pytest.mark.parametrize("output", [NEXT_LOGPROBS, NEXT_TAILS, NEXT_TAIL_ROWS])
def test_distributions_are_checked_too(
    adaptive: Bundle, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    session = Session(adaptive, "cpu", 1, slots=1)
    session.check()
    read = session._for_distributions.outputs
    monkeypatch.setattr(
        session._for_distributions,
        "outputs",
        lambda: (values := read()) | {output: values[output] + 1},
    )
    with pytest.raises(EngineError, match="golden"):
        session.check()


def test_batches_with_lists_do_not_disturb_the_steps_around_them(adaptive: Bundle) -> None:
    disturbed, plain = (Session(adaptive, "cpu", 1, 3) for _ in range(2))
    ids = np.array([0, 5, 9, 7])
    listed = Piece(ids[:-1], None, 3, range(3), ids[1:], range(0), 0, top=5)
    alone = plain.run(plan([listed], plain.taps, plain.multiple)).alternatives
    for position in range(6):
        steps = [Step(5 + position, slot, position) for slot in (1, 2)]
        batch = plan(steps, plain.taps, plain.multiple)
        got, expected = (s.run(batch).next_distributions.full([0, 1]) for s in (disturbed, plain))
        np.testing.assert_array_equal(got, expected)
        between = disturbed.run(plan([listed], plain.taps, plain.multiple)).alternatives
        np.testing.assert_array_equal(between.ids[:3], alone.ids[:3])
        np.testing.assert_array_equal(between.top[:3], alone.top[:3])


def test_on_other_devices_each_step_has_tails_for_its_first_row(
    adaptive: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(adaptive, "cpu", 1, slots=1)
    monkeypatch.setattr(session._for_distributions, "_least", 1)
    none = TailTerms.always(0, session.tail_count).padded(1)  # no row pays
    for _ in range(2):  # the second step binds its tokens and terms alone
        distributions = session.run(plan([Step(5, 1, 0)], session.taps, 1, none)).next_distributions
        assert distributions.has_tails(0)


def test_on_other_devices_scores_alone_are_the_same(
    adaptive: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, plain = (Session(adaptive, "cpu", 1, slots=1) for _ in range(2))
    monkeypatch.setattr(session._for_scores, "_least", 1)
    ids = np.array([0, 5, 9, 7])
    piece = Piece(ids[:-1], None, None, range(3), ids[1:], range(0), 0)
    batch = plan([piece], session.taps, session.multiple)
    for _ in range(2):  # the second time nothing has moved
        np.testing.assert_array_equal(session.run(batch).logprobs[:3], plain.run(batch).logprobs)


def test_arrays_that_moved_are_bound_and_those_that_did_not_stay(tiny: Bundle) -> None:
    session = Session(tiny, "cpu", 1, slots=2)
    ids = np.array([0, 5, 9, 7, 3, 8])
    texts = [Piece(ids[:n], None, None, range(n), ids[1 : n + 1], range(0), 0) for n in (2, 4)]
    carried = Piece(ids[:3], None, 1, range(3), ids[1:4], range(0), 0)
    behind = Piece(ids[3:5], 1, None, range(2), ids[4:6], range(0), 3)
    all_rows = Piece(ids[:-1], None, None, range(5), ids[1:], range(0), 0)
    expected = session.run(plan([all_rows], session.taps, session.multiple)).logprobs
    for _ in range(2):
        for text in texts:
            got = session.run(plan([text], session.taps, session.multiple)).logprobs
            np.testing.assert_array_equal(got[: text.rows], expected[: text.rows])
        session.run(plan([carried], session.taps, session.multiple))
        got = session.run(plan([behind], session.taps, session.multiple)).logprobs
        np.testing.assert_array_equal(got[:2], expected[3:5])
