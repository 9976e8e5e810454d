"""The end of the server for requests whose answers have not begun."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.http.errors import respond
from app.errors import STOPPING, NotReadyError


@dataclass(slots=True)
class Unanswered:
    """Requests whose answers have not begun: they wait for their body, a thread or the engine."""

    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    ended: bool = False

    def end(self) -> None:
        """Has them told that the server stops, whatever they wait for."""
        self.ended = True
        for task in self.tasks:
            task.cancel()


class Ending:
    """ASGI middleware: keeps `Unanswered`, and answers those that it has ended.

    An answer that has begun ends by itself, since the engines do; if its client does not read it,
    it is cut off. A fault of ours is answered here too: Starlette would do that outside of all
    middleware, without the headers that it adds.
    """

    def __init__(self, app: ASGIApp, unanswered: Unanswered) -> None:
        self._app, self._unanswered = app, unanswered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task, tasks = asyncio.current_task(), self._unanswered.tasks
        if scope["type"] != "http" or task is None:
            await self._app(scope, receive, send)
            return

        async def begin(message: Message) -> None:
            tasks.discard(task)
            await send(message)

        tasks.add(task)
        try:
            await self._app(scope, receive, begin)
        except asyncio.CancelledError:
            if not self._unanswered.ended:
                raise
            task.uncancel()
            if task in tasks:
                stopping = respond(NotReadyError(STOPPING))
                await stopping(scope, receive, send)
        except Exception as error:
            if task not in tasks:
                raise
            await respond(error)(scope, receive, send)
        finally:
            tasks.discard(task)
