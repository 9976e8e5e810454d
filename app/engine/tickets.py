"""Submitted sequences, where their events arrive, and how much of their work is outstanding."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.engine.sequence import Event, Failed, Finished, Generation, Scored, Sequence
from app.engine.turns import CallerQueue

if TYPE_CHECKING:
    from app.engine.prompts import Prompts


@dataclass(slots=True, eq=False)
class Ticket:
    """A submitted sequence and where its events arrive, in order, `Finished` or `Failed` last."""

    sequence: Sequence
    events: asyncio.Queue[Event]
    held: list[Event] = field(default_factory=list)
    """Events that are delivered together with later ones."""
    due: int = 0
    """Rows of the text or prompt that are not delivered; with the lock of its loop."""

    def hold(self, event: Event) -> list[Event]:
        """The events to deliver now; none while more are to come that may be delivered together."""
        self.held.append(event)
        follow = self.sequence.follow
        together = follow.together if isinstance(follow, Generation) else 1
        if len(self.held) < together and not isinstance(event, Failed | Finished):
            return []
        events = self.held.copy()
        self.held.clear()
        return events


class Outstanding:
    """Rows of submitted texts and prompts that are not delivered. Guarded by the loop's lock."""

    def __init__(self) -> None:
        self.due = 0
        self.bulk_due = 0
        """Those of bulk among them."""
        self.blocked = self.bulk_blocked = 0
        """Those of prompts that wait for a slot: no rate says when a stream ends."""

    @property
    def timed(self) -> int:
        """Rows due that are done in a time that the rate gives."""
        return max(0, self.due - self.blocked)

    @property
    def bulk_timed(self) -> int:
        """Those of bulk among them."""
        return max(0, self.bulk_due - self.bulk_blocked)

    def add(self, caller: CallerQueue, tickets: Iterable[Ticket], halo: int) -> None:
        """Counts a caller's tickets. halo: R - 1."""
        for ticket in tickets:
            ticket.sequence.caller = caller
            ticket.due = ticket.sequence.rows_due(halo)
            self._change(ticket, ticket.due)

    def count_done(self, ticket: Ticket, event: Event) -> None:
        """Counts the rows that an event delivers as done."""
        if not ticket.due or isinstance(event, Failed):
            return
        rows = ticket.due
        if isinstance(event, Scored):
            rows = min(rows, len(event.logprobs))
        self._change(ticket, -rows)
        ticket.due -= rows

    def count_blocked(self, prompts: Prompts, bulk_prompts: Prompts) -> None:
        """Counts the prompts that wait for a slot. Guarded by the scheduler's lock."""
        self.bulk_blocked = bulk_prompts.blocked_rows
        self.blocked = prompts.blocked_rows + self.bulk_blocked

    def remove(self, ticket: Ticket) -> None:
        """Counts a ticket no more."""
        self._change(ticket, -ticket.due)
        ticket.due = 0

    def _change(self, ticket: Ticket, rows: int) -> None:
        caller = ticket.sequence.caller
        assert caller is not None
        self.due += rows
        self.bulk_due += rows if caller.bulk else 0
        caller.outstanding += rows
