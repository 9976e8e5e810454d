"""Live servers: with the tiny bundle, as in the API's tests, and with the shipped one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.settings import Settings
from tests.api.conftest import server, serving

__all__ = ["server"]


@pytest.fixture(scope="session")
def shipped_url() -> Iterator[str]:
    """Its address, in float32."""
    with serving(Settings(device="cpu", precision="float32")) as running:
        yield running.url


@pytest.fixture(scope="session")
def default_url() -> Iterator[str]:
    """Its address, in what it is served in by default."""
    with serving(Settings(device="cpu")) as running:
        yield running.url
