"""Limits on the values of fields."""

from __future__ import annotations

from pydantic import BaseModel

from app.errors import TooLargeError
from app.settings import Settings


def check(settings: Settings, field: str, value: int, limit: str) -> None:
    """Raises TooLargeError when a field's value is over the setting named `limit`."""
    allowed: int = getattr(settings, limit)
    if value > allowed:  # the value last, since it may be long and is cut
        raise TooLargeError(f"{field}: over the limit {limit}, {allowed}: {value}", field)


def lower_default(settings: Settings, body: BaseModel, field: str, limit: str) -> None:
    """Gives a field that was left out the limit, if its default is above it."""
    allowed: int = getattr(settings, limit)
    if field not in body.model_fields_set and getattr(body, field) > allowed:
        setattr(body, field, allowed)
