"""Live servers: with the tiny bundle, as in the API's tests, and with the shipped one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.settings import Settings
from tests.api.conftest import server, serving

__all__ = ["server"]


@pytest.fixture(scope="session")
def shipped_url() -> Iterator[str]:
    """Its address."""
    with serving(Settings(device="cpu")) as running:
        yield running.url
