"""What the engine tells of a sequence, as results and exceptions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.engine.sequence import Distribution, Failed, Finished, Generated, Scored, Top
from app.errors import EngineError, NotReadyError
from model.core.graph import Floats, Indices

if TYPE_CHECKING:
    from app.engine.loop import Ticket


@dataclass(frozen=True, slots=True)
class ScoredPart:
    """Scores of the next n tokens of a text. logprobs: float32 [n]; ranks: int64 [n].

    ranks: known if `top` is; 1 for the most probable token.
    """

    logprobs: Floats
    top: Top | None
    ranks: Indices | None = None


def scored_part(event: Scored) -> ScoredPart:
    """The scores of an event."""
    return ScoredPart(event.logprobs, event.top, event.ranks)


async def next_event(ticket: Ticket) -> Scored | Distribution | Generated | None:
    """A ticket's next event, None for the last. Raises EngineError, NotReadyError."""
    event = await ticket.events.get()
    if isinstance(event, Failed):
        raise failure(event)
    return None if isinstance(event, Finished) else event


def failure(event: Failed) -> Exception:
    """The exception that an event stands for."""
    return (NotReadyError if event.stopped else EngineError)(event.message)
