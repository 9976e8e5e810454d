"""Cycles of unused objects are found where they must be."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from app.server import memory


class Held:
    """Refers to itself."""

    def __init__(self) -> None:
        self.own = self


@pytest.fixture
def unfrozen() -> Iterator[None]:
    """Leaves the process as it was."""
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("unfrozen")
def test_what_was_left_out_of_searches_is_found_when_it_matters() -> None:
    held = Held()
    seen = weakref.ref(held)
    memory.freeze_gc()
    del held
    gc.collect()
    assert seen() is not None  # the search had nothing to go through
    memory.collect_cycles()
    assert seen() is None
    assert gc.get_freeze_count() > 0


@pytest.mark.usefixtures("unfrozen")
def test_nothing_is_left_out_unasked() -> None:
    gc.unfreeze()
    memory.collect_cycles()
    assert gc.get_freeze_count() == 0
