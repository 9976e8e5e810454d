"""Choosing a device, and a bundle's own check at load."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from app.engine import session as module
from app.engine.planner import Piece, Step, plan
from app.engine.session import Choice, Providers, Session, choose, open_sessions
from app.errors import EngineError
from model.bundle import Bundle
from model.graph import FlatBatch, TailTerms


def test_without_a_gpu_auto_takes_the_cpu_and_says_why(
    tiny: Bundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_cuda_problem", lambda: "there is no NVIDIA driver")
    assert choose("auto") == Choice("cpu", "there is no NVIDIA driver")
    with caplog.at_level(logging.INFO):
        assert Session(tiny, "auto", 1, slots=1).device == "cpu"
    assert "device=cpu reason='there is no NVIDIA driver'" in caplog.text


def test_demanding_cuda_without_it_is_an_error_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_cuda_problem", lambda: "there is no NVIDIA driver")
    with pytest.raises(EngineError, match="no NVIDIA driver"):
        choose("cuda")


def test_cuda_that_fails_to_load_falls_back_to_the_cpu_only_for_auto(
    tiny: Bundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module._session

    def broken(graph: Path, threads: int, providers: Providers) -> object:
        if providers[0] == ("CUDAExecutionProvider", {"device_id": 0}):
            raise RuntimeError("libcublas is missing")
        return real(graph, threads, providers)

    monkeypatch.setattr(module, "_cuda_problem", lambda: None)
    monkeypatch.setattr(module, "_session", broken)
    with caplog.at_level(logging.INFO):
        assert Session(tiny, "auto", 1, slots=1).device == "cpu"
    assert "libcublas is missing" in caplog.text
    with pytest.raises(EngineError, match="libcublas"):
        Session(tiny, "cuda", 1, slots=1)


def test_8_bits_run_on_the_cpu_though_there_is_a_gpu(
    tiny: Bundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_cuda_problem", lambda: None)
    with caplog.at_level(logging.INFO):
        assert Session(tiny, "auto", 1, slots=1, precision="int8").device == "cpu"
    assert "device=cpu reason='8 bits are for the CPU'" in caplog.text
    with pytest.raises(EngineError, match=r"^the setting precision asks for int8, but it is for"):
        Session(tiny, "cuda", 1, slots=1, precision="int8")


class OnGpu:
    """Stands for a session on a GPU, of which the third does not work."""

    device, precision = "cuda", "float32"

    def __init__(self, *arguments: object, gpu: int = 0) -> None:
        self.wanted, self.gpu = arguments[1], gpu

    def check(self, bundle: Bundle) -> None:
        if self.gpu == 2:
            raise EngineError("out of memory")


def test_every_gpu_gets_a_session_and_a_bad_one_is_named(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "Session", OnGpu)
    monkeypatch.setattr(module, "_gpus", lambda: 2)
    opened = open_sessions(tiny, "auto", 1, 0, 8)
    found = [(session.wanted, session.gpu) for session, _ in opened]  # type: ignore[attr-defined]
    assert found == [("auto", 0), ("cuda", 1)]
    assert [parts for _, parts in opened] == [[], []]
    monkeypatch.setattr(module, "_gpus", lambda: 3)
    with pytest.raises(EngineError, match="GPU 2: out of memory; CUDA_VISIBLE_DEVICES"):
        open_sessions(tiny, "auto", 1, 0, 8)


def test_a_graph_that_cannot_be_loaded_is_an_error_with_its_place(
    tiny: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineError, match="cannot be loaded"):
        Session(dataclasses.replace(tiny, folder=tmp_path), "cpu", 1, slots=1)


def test_golden_texts_are_scored_right(tiny: Bundle) -> None:
    Session(tiny, "cpu", 1, slots=1).check(tiny)


def test_wrong_scores_of_golden_texts_are_noticed(tiny: Bundle) -> None:
    golden = tiny.golden[0].model_copy(
        update={"logprobs": [p - 0.01 for p in tiny.golden[0].logprobs]}
    )
    with pytest.raises(EngineError, match="golden"):
        Session(tiny, "cpu", 1, slots=1).check(dataclasses.replace(tiny, golden=[golden]))


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
    found, expected = (session.run(one).following.whole([0]) for session in (disturbed, plain))
    np.testing.assert_array_equal(found, expected)


def test_what_was_bound_before_a_failure_is_bound_again(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime reads memory that nobody holds any more, if it is not."""
    session = Session(tiny, "cpu", 1, slots=4)
    steps, other = (
        plan([Step(5, slot, 0) for slot in slots], session.taps) for slots in ((1, 2, 3), (4,))
    )
    addresses, *others = steps.addresses
    whole = np.concatenate([addresses.carry, addresses.carry], axis=1)
    carry = whole[:, : addresses.carry.shape[1]]  # not in one piece: a copy is bound
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
    binding = session._following._binding
    bind = binding.bind_cpu_input

    def bound(name: str, array: npt.NDArray[Any]) -> None:
        again.append(name)
        bind(name, array)

    monkeypatch.setattr(binding, "bind_cpu_input", bound)
    session.run(steps)
    assert "carry" in again


def test_scores_alone_are_checked_too(tiny: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(tiny, "cpu", 1, slots=1)
    run = session._scoring.run
    monkeypatch.setattr(
        session._scoring, "run", lambda batch: {n: x + 1 for n, x in run(batch).items()}
    )
    with pytest.raises(EngineError, match="golden"):
        session.check(tiny)


def test_batches_with_lists_do_not_disturb_the_steps_around_them(adaptive: Bundle) -> None:
    disturbed, plain = (Session(adaptive, "cpu", 1, 3) for _ in range(2))
    ids = np.array([0, 5, 9, 7])
    listed = Piece(ids[:-1], None, 3, range(3), ids[1:], range(0), 0, top=5)
    alone = plain.run(plan([listed], plain.taps, plain.multiple)).listed
    for position in range(6):
        steps = [Step(5 + position, slot, position) for slot in (1, 2)]
        batch = plan(steps, plain.taps, plain.multiple)
        found, expected = (s.run(batch).following.whole([0, 1]) for s in (disturbed, plain))
        np.testing.assert_array_equal(found, expected)
        between = disturbed.run(plan([listed], plain.taps, plain.multiple)).listed
        np.testing.assert_array_equal(between.ids[:3], alone.ids[:3])
        np.testing.assert_array_equal(between.top[:3], alone.top[:3])


def test_on_other_devices_each_step_has_tails_for_its_first_row(
    adaptive: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(adaptive, "cpu", 1, slots=1)
    monkeypatch.setattr(session._following, "_least", 1)
    none = TailTerms.always(0, session.clusters).filled(1)  # no row pays
    for _ in range(2):  # the second step binds its tokens and terms alone
        following = session.run(plan([Step(5, 1, 0)], session.taps, 1, none)).following
        assert following.has_tails(0)


def test_on_other_devices_scores_alone_are_the_same(
    adaptive: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, plain = (Session(adaptive, "cpu", 1, slots=1) for _ in range(2))
    monkeypatch.setattr(session._scoring, "_least", 1)
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
    whole = session.run(plan([all_rows], session.taps, session.multiple)).logprobs
    for _ in range(2):
        for text in texts:
            found = session.run(plan([text], session.taps, session.multiple)).logprobs
            np.testing.assert_array_equal(found[: text.rows], whole[: text.rows])
        session.run(plan([carried], session.taps, session.multiple))
        found = session.run(plan([behind], session.taps, session.multiple)).logprobs
        np.testing.assert_array_equal(found[:2], whole[3:5])
