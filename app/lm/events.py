"""The engine's events, with its failures as exceptions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.engine.sequence import Distribution, Failed, Finished, Generated, Scored
from app.errors import EngineError, NotReadyError

if TYPE_CHECKING:
    from app.engine.loop import Ticket


async def next_event(ticket: Ticket) -> Scored | Distribution | Generated | None:
    """A ticket's next event, None for the last. Raises EngineError, NotReadyError."""
    event = await ticket.events.get()
    if isinstance(event, Failed):
        raise failure(event)
    return None if isinstance(event, Finished) else event


def failure(event: Failed) -> Exception:
    """The exception that an event stands for."""
    return (NotReadyError if event.stopped else EngineError)(event.message)
