"""The live server of the API's tests."""

from __future__ import annotations

from tests.api.conftest import server

__all__ = ["server"]
