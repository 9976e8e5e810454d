"""The rate before anything was served."""

from __future__ import annotations

from typing import Any

import pytest

from app.catalog.loading import _first_rate
from app.engine.runtime.session import Session
from app.errors import NoMemoryError
from model.core.bundle import Bundle
from model.core.flat_batch import FlatBatch


@pytest.mark.parametrize(("limit", "sizes"), [(300, [1000, 500, 250, 250]), (3, None)])
def test_a_model_is_loaded_where_a_full_batch_lacks_memory(
    tiny: Bundle, limit: int, sizes: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(tiny, "cpu", 1, slots=1)
    run = session.run
    tried: list[int] = []

    def little_memory(batch: FlatBatch) -> Any:
        tried.append(len(batch.tokens))
        if len(batch.tokens) > limit:
            raise NoMemoryError("out of memory")
        return run(batch)

    monkeypatch.setattr(session, "run", little_memory)
    if sizes is None:
        with pytest.raises(NoMemoryError):
            _first_rate(tiny, session, 1000)
    else:
        assert _first_rate(tiny, session, 1000) > 0
        assert tried == sizes
