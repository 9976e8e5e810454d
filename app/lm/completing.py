"""Completions: from a prompt to sequences of the engine, and from their events to tokens."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from app.engine.sequence import Failed, Finished, Generated, Generation, Scored, Sequence, TopWanted
from app.lm.prompts import Prompt
from app.lm.scoring import failure, next_event

if TYPE_CHECKING:
    from app.engine.engine import Caller
    from app.engine.tickets import Ticket


Events = AsyncGenerator[Scored | list[Generated]]
Completing = tuple[AsyncGenerator[Scored] | None, list[Events]]
"""The scores of a prompt, if all choices share them; else they come first in the one choice. And
for each choice its tokens, several at once if several have arrived."""


def complete(
    caller: Caller,
    prompt: Prompt,
    generations: list[Generation],
    top: TopWanted | None,
    choices: int,
) -> Completing:
    """Continues a prompt once for each generation; all of them share the prompt's rows.

    If `top` is set, all tokens that the caller sent but the first are scored, with these
    alternatives, for all of the `choices`.
    """
    last = len(prompt.ids) - 1
    scored = top is not None and last > prompt.given
    if scored and choices == 1:  # the choice's sequence scores the prompt too
        follow = generations[0] if generations else None
        sequence = Sequence(prompt.ids, score_from=prompt.given, top=top or 0, follow=follow)
        return None, [_events(caller, *caller.submit([sequence]))]
    shared = None
    if scored:
        shared = Sequence(prompt.ids, score_from=prompt.given, top=top or 0)
    elif len(generations) > 1 and last > 0:
        shared = Sequence(prompt.ids, score_from=last)
    sequences = [] if shared is None else [shared]
    sequences += [
        Sequence(prompt.ids, score_from=last, follow=follow, parent=shared)
        for follow in generations
    ]
    tickets = caller.submit(sequences) if sequences else []
    scores = _scores(tickets[0]) if scored else None
    events = [_events(caller, ticket) for ticket in tickets[shared is not None :]]
    return scores, events or [_no_events() for _ in range(choices)]


async def _scores(ticket: Ticket) -> AsyncGenerator[Scored]:
    while (event := await next_event(ticket)) is not None:
        assert isinstance(event, Scored)
        yield event


async def _events(caller: Caller, ticket: Ticket) -> Events:
    arrived: list[Generated] = []
    try:
        while True:
            event = await ticket.events.get()
            if isinstance(event, Generated):
                arrived.append(event)
                if ticket.sequence.mark_read(1):
                    caller.wake()
                if event.finish is None and not ticket.events.empty():
                    continue
            if arrived:
                yield arrived
                arrived = []
            if isinstance(event, Scored):
                yield event
            elif isinstance(event, Finished):
                return
            elif isinstance(event, Failed):
                raise failure(event)
    finally:
        caller.cancel(ticket)


async def _no_events() -> Events:
    events: tuple[Scored, ...] = ()
    for event in events:
        yield event
