"""A live server with the shipped bundle."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.settings import Settings
from tests.api.conftest import serving


@pytest.fixture(scope="session")
def shipped_url() -> Iterator[str]:
    """Its address."""
    with serving(Settings(device="cpu")) as running:
        yield running.url
