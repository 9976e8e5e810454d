"""The shipped bundle's golden texts, on this processor, in every precision it has."""

from __future__ import annotations

import pytest

from app.engine.runtime.session import Session, open_sessions
from app.settings import Settings
from model.core import bundle, byte_products
from model.core.graph import Precision


@pytest.fixture(scope="module")
def shipped() -> bundle.Bundle:
    return bundle.load(Settings().bundle)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_golden_texts_are_scored_right(shipped: bundle.Bundle, precision: Precision) -> None:
    session = Session(shipped, "cpu", 1, slots=1, precision=precision)
    assert session.precision == precision
    session.check()


def test_8_bits_are_taken_unasked_on_every_processor(shipped: bundle.Bundle) -> None:
    assert byte_products.graph_int8(shipped) is not None
    ((session, _),) = open_sessions(shipped, "cpu", 1, 1, 1, "auto")
    assert session.precision == "int8"
