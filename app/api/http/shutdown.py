"""Answers requests that have no response yet when the server stops."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.http.errors import respond
from app.errors import STOPPING, NotReadyError


@dataclass(slots=True)
class Unanswered:
    """Requests without a response yet: they wait for their body, a thread or the engine."""

    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    cancelled: bool = False

    def cancel(self) -> None:
        """Cancels the requests, whatever they wait for; `ShutdownResponses` answers them."""
        self.cancelled = True
        for task in self.tasks:
            task.cancel()


class ShutdownResponses:
    """ASGI middleware: tracks requests in `Unanswered`, and answers 503 to cancelled ones.

    A response that has begun ends because the engines end; it is cut off if its client does not
    read it. Unexpected exceptions are answered here too: Starlette would answer them outside of
    all middleware, without the headers that middleware adds.
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
            if not self._unanswered.cancelled:
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
