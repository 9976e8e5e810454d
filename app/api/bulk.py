"""POST /v1/score/stream: lines of NDJSON are scored while they arrive.

The response reads the body and writes the answers at the same time, so it is written against ASGI
itself: Starlette's streaming response listens for a disconnect with the `receive` that the body
comes through, and discards the body messages it receives. Back-pressure is flow control on both
sides: with enough lines in progress no more of the body is asked for, and a line stays in progress
until it is sent.
"""

from __future__ import annotations

import asyncio

from fastapi import Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.bulk_pipeline import Bulk
from app.api.http.body import check_not_encoded
from app.api.http.deadlines import Deadline, until
from app.api.http.errors import CLIENT_CLOSED
from app.errors import DeadlineError, EngineError, NotReadyError, RequestError
from app.text.lines import on_one_line

NDJSON = "application/x-ndjson"
ORDERS = ("input", "completed")


async def score_stream(request: Request) -> Response:
    """Each line is a body of `/v1/score`; its answer comes while others are still being sent.

    An invalid line gets an error; the others are still scored. The limits of a request
    hold for a line; the body has none.
    """
    deadline = Deadline(request)
    catalog = request.app.state.catalog
    catalog.check()
    check_not_encoded(request)
    order = request.query_params.get("order", "input")
    if order not in ORDERS:
        raise RequestError(f"order: must be one of {', '.join(ORDERS)}", "order")
    bulk = Bulk(catalog, request.app.state.open_bodies.open(), in_order=order == "input")
    request.state.owes = bulk.owes  # the body may rest while lines are in work
    return _BulkResponse(bulk, deadline)


class _BulkResponse(Response):
    """Reads lines and writes their answers until both ends are reached or the client has left."""

    def __init__(self, bulk: Bulk, deadline: Deadline) -> None:
        super().__init__(media_type=NDJSON)
        del self.headers["content-length"]  # that of no body
        self._bulk, self._deadline = bulk, deadline
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reading = asyncio.create_task(self._read(receive))
        writing = asyncio.create_task(self._write(send))
        try:
            await asyncio.wait({reading, writing}, return_when=asyncio.FIRST_COMPLETED)
            (writing if writing.done() else reading).result()
            if not (writing.done() or self._started):
                await Response(status_code=CLIENT_CLOSED)(scope, receive, send)
        finally:
            for task in (reading, writing):
                task.cancel()
            await asyncio.gather(reading, writing, return_exceptions=True)
            await self._bulk.close()

    async def _read(self, receive: Receive) -> None:
        """Takes the body as there is room for its lines; returns when the client has left."""
        more = True
        while (message := await receive())["type"] != "http.disconnect":
            if more:
                await self._bulk.feed(message.get("body", b""))
                more = message.get("more_body", False)
                if not more:
                    await self._bulk.end()

    async def _write(self, send: Send) -> None:
        try:
            async for part in until(self._deadline, self._bulk.answers()):
                await self._send(send, part, more=True)
        except (NotReadyError, EngineError, DeadlineError) as error:
            if not self._started:
                raise  # it becomes the HTTP status
            await self._send(send, self._bulk.cut_off(error), more=True)
        await self._send(send, b"", more=False)

    async def _send(self, send: Send, part: bytes, *, more: bool) -> None:
        if not self._started:
            # not before: a client may wait with its body until the first byte of it is asked for
            self._started = True
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
        # a part ends with a complete character, or with a line
        await send({"type": "http.response.body", "body": on_one_line(part), "more_body": more})
