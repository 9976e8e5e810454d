"""Which graph is run, and why."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest

from app.engine.runtime.devices import choose_precision
from app.engine.runtime.session import Session, open_sessions
from app.errors import EngineError
from model.core import byte_products
from model.core.bundle import MAX_INT8_PERPLEXITY_RATIO, Bundle
from model.core.flat_batch import whole_text


def with_ratio(bundle: Bundle, ratio: float | None) -> Bundle:
    config = bundle.config.model_copy(update={"int8_perplexity_ratio": ratio})
    return dataclasses.replace(bundle, config=config)


def test_float32_is_what_the_setting_says(tiny: Bundle) -> None:
    assert choose_precision("float32", tiny, "cpu")[0] == "float32"


@pytest.mark.parametrize(
    ("ratio", "precision"),
    [(0.9999, "int8"), (MAX_INT8_PERPLEXITY_RATIO, "int8"), (1.0021, "float32"), (None, "float32")],
)
def test_auto_takes_8_bits_where_they_cost_little(
    tiny: Bundle, ratio: float | None, precision: str
) -> None:
    chosen, reason = choose_precision("auto", with_ratio(tiny, ratio), "cpu")
    assert chosen == precision
    assert precision == "int8" or str(ratio) in reason


def test_demanding_8_bits_takes_them_whatever_they_cost(tiny: Bundle) -> None:
    assert choose_precision("int8", with_ratio(tiny, 1.5), "cpu")[0] == "int8"


def test_what_stands_against_8_bits_is_said(tiny: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    cheap = with_ratio(tiny, 1.0)
    assert choose_precision("auto", cheap, "cuda")[0] == "float32"
    with pytest.raises(EngineError, match="for the CPU only"):
        choose_precision("int8", cheap, "cuda")


@pytest.mark.parametrize(
    ("saturates", "graph"),
    [(True, "model.int8-unsigned.onnx"), (False, "model.int8.onnx")],  # without VNNI; with it, Arm
)
def test_the_processor_decides_which_graph_in_8_bits_is_run(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch, saturates: bool, graph: str
) -> None:
    monkeypatch.setattr(byte_products, "saturate", lambda: saturates)
    got = byte_products.graph_int8(tiny)
    assert got is not None
    assert got.name == graph
    assert choose_precision("auto", with_ratio(tiny, 1.0), "cpu")[0] == "int8"


def test_an_older_bundle_has_8_bits_where_its_one_graph_is_exact(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bundle, "graph_int8_unsigned", None)
    older = with_ratio(tiny, 1.0)
    monkeypatch.setattr(byte_products, "saturate", lambda: False)
    assert choose_precision("auto", older, "cpu")[0] == "int8"
    monkeypatch.setattr(byte_products, "saturate", lambda: True)
    chosen, reason = choose_precision("auto", older, "cpu")
    assert chosen == "float32"
    assert "no VNNI" in reason
    assert "export it again" in reason
    with pytest.raises(EngineError, match="asks for int8, but this processor has no VNNI"):
        choose_precision("int8", older, "cpu")


def test_a_bundle_without_a_graph_in_8_bits_is_run_in_float32(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bundle, "graph_int8", None)
    assert "no graph in 8 bits" in choose_precision("auto", tiny, "cpu")[1]
    with pytest.raises(EngineError, match="no graph in 8 bits"):
        choose_precision("int8", tiny, "cpu")


def test_float16_is_taken_when_it_is_asked_for(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for device in ("cpu", "cuda"):
        assert choose_precision("float16", tiny, device)[0] == "float16"
        assert choose_precision("auto", tiny, device)[0] != "float16"
    monkeypatch.setattr(Bundle, "graph_float16", None)
    with pytest.raises(EngineError, match="no graph in float16"):
        choose_precision("float16", tiny, "cpu")


@pytest.mark.parametrize("name", ["tiny", "adaptive"])
def test_float16_scores_as_float32_does_within_its_digits(
    name: str, request: pytest.FixtureRequest
) -> None:
    bundle: Bundle = request.getfixturevalue(name)
    half, exact = (Session(bundle, "cpu", 1, 1, p) for p in ("float16", "float32"))
    half.check()
    ids = np.random.default_rng(0).integers(2, bundle.config.model.vocabulary, 200)
    batch = whole_text(ids, half.taps)
    (got, distributions, _), (expected, other, _) = half.run(batch), exact.run(batch)
    off = np.abs(got - expected)
    assert 0 < off.mean() < 0.02
    every = distributions.full([0])
    assert np.abs(every - other.full([0])).mean() < 0.02
    assert np.exp(every.astype(np.float64)).sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("off", [0.04, [0.0] * 3 + [0.2]], ids=["on average", "once"])
def test_a_wrong_float16_graph_does_not_pass_the_bundles_check(
    tiny: Bundle, off: float | list[float]
) -> None:
    half = Session(tiny, "cpu", 1, 1, "float16")
    golden = []
    for text in tiny.golden:
        batch = whole_text(text.ids, half.taps, half.multiple)
        scores = half.run(batch).logprobs[: len(text.ids) - 1]
        golden.append(text.model_copy(update={"logprobs": scores.tolist()}))
    Session(dataclasses.replace(tiny, golden=golden), "cpu", 1, 1, "float16").check()
    wrong = np.array(golden[1].logprobs)
    wrong[:4] += np.array(off) if isinstance(off, list) else 0.0
    wrong += 0.0 if isinstance(off, list) else off
    golden[1] = golden[1].model_copy(update={"logprobs": wrong.tolist()})
    with pytest.raises(EngineError, match="in float16"):
        Session(dataclasses.replace(tiny, golden=golden), "cpu", 1, 1, "float16").check()


def test_the_log_says_what_is_computed_in(tiny: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        ((eight, _),) = open_sessions(tiny, "cpu", 1, 1, 1, "int8")
        ((exact, _),) = open_sessions(tiny, "cpu", 1, 1, 1, "float32")
    assert (eight.precision, exact.precision) == ("int8", "float32")
    assert eight.build != exact.build
    assert "precision=int8" in caplog.text
    assert "precision=float32 reason='the setting asks for it'" in caplog.text


def test_8_bits_that_score_wrongly_are_left_for_float32_only_by_auto(
    tiny: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    golden = [g.model_copy(update={"int8": [p - 0.1 for p in g.int8]}) for g in tiny.golden]
    wrong = dataclasses.replace(with_ratio(tiny, 1.0), golden=golden)
    with caplog.at_level(logging.INFO):
        ((session, _),) = open_sessions(wrong, "cpu", 1, 1, 1, "auto")
    assert session.precision == "float32"
    assert "precision=float32 reason=\"the engine's scores of a golden text are off" in caplog.text
    with pytest.raises(EngineError, match="on cpu in int8"):
        open_sessions(wrong, "cpu", 1, 1, 1, "int8")


def test_a_wrong_8_bit_graph_does_not_pass_the_bundles_check(tiny: Bundle) -> None:
    Session(tiny, "cpu", 1, 1, "int8").check()
    golden = [g.model_copy(update={"int8": [p - 0.1 for p in g.int8]}) for g in tiny.golden]
    with pytest.raises(EngineError, match="in int8"):
        Session(dataclasses.replace(tiny, golden=golden), "cpu", 1, 1, "int8").check()
