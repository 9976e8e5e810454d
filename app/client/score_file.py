"""Scores every line of a file."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing
from itertools import chain, islice
from pathlib import Path
from typing import Any

from app.client import files, rows
from app.client.async_client import AsyncClient
from app.client.bulk import WINDOW_LINES, Line
from app.client.errors import ClientError
from app.client.files import Source
from app.client.partial import Partial, Read
from app.client.rows import Row

Progress = Callable[[int], object]
"""Called with the number of the file's bytes that have been read."""
_NO_TEXT = b"null"
"""Sent instead of a line without a text: its answer, an error, keeps the order."""


class _LinesToSend:
    """Lines of a file as they are sent, and a queue of those that have no answer yet.

    first: the first line to send. begun: the lines that an interrupted run had read.
    """

    def __init__(self, source: Source, field: str | None, first: int, begun: Read | None) -> None:
        self.source, self.field, self.first, self.begun = source, field, first, begun
        self._waiting: deque[tuple[int, str | None, str | None]] = deque()
        """Of each line without an answer: its index, its id, and why it was not sent."""
        self._lines, self._digest = 0, hashlib.sha256()
        self.failure: ClientError | None = None
        """Why the file could not be read further; the lines before still get their rows."""

    @property
    def read(self) -> Read:
        """The lines that have been read, sent or not."""
        return Read(self._lines, self._digest.hexdigest())

    def __iter__(self) -> Iterator[Line]:
        try:
            yield from self._sent()
        except ClientError as error:
            self.failure = error

    def _sent(self) -> Iterator[Line]:
        for index, line in self._from_first():
            if not line.strip():
                continue
            try:
                key = self.field
                text, custom_id = (
                    (files.text_of(line), None) if key is None else files.text_in(line, key)
                )
                self._waiting.append((index, custom_id, None))
                yield {"input": text}
            except files.LineError as error:
                self._waiting.append((index, error.custom_id, str(error)))
                yield _NO_TEXT

    def _from_first(self) -> Iterator[tuple[int, bytes]]:
        """Raises ClientError if the file does not begin with the lines in `begun`."""
        lines = self._counted()
        held: list[tuple[int, bytes]] = []
        if self.begun is not None:
            known = islice(lines, self.begun.lines)
            held = [(index, line) for index, line in known if index >= self.first]
            if self.read != self.begun:
                raise ClientError(
                    f"{self.source.name}: its first {self.begun.lines} lines are not those with "
                    "rows; give the same file, or --restart to start again"
                )
        return ((index, line) for index, line in chain(held, lines) if index >= self.first)

    def _counted(self) -> Iterator[tuple[int, bytes]]:
        for index, line in enumerate(self.source.lines()):
            self._lines = index + 1
            self._digest.update(line + b"\n")
            yield index, line

    def row(self, answer: Row) -> Row:
        """The row of the next answer."""
        index, custom_id, error = self._waiting.popleft()
        if error is not None:
            answer = {"error": {"message": error}}
        return rows.row_of(answer, index, custom_id)


async def provenance(
    client: AsyncClient, field: str | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What determines the rows besides the lines: the field, the options and the model."""
    named = {"model": options["model"]} if "model" in options else {}
    probe = await client.score("a", detail="totals", **named)
    fingerprint = probe.system_fingerprint
    return {"field": field, "options": dict(options), "system_fingerprint": fingerprint}


async def score_rows(
    client: AsyncClient,
    source: Source,
    field: str | None,
    options: Mapping[str, Any],
    write: Callable[[Row], object],
    fingerprint: str | None,
    first: int = 0,
    begun: Read | None = None,
    flush: Callable[[Read], object] = lambda read: None,
    progress: Progress = lambda position: None,
) -> tuple[int, int]:
    """Writes a row for every line that is not blank, in order. Returns counts of rows and errors.

    field: of lines of JSON, the one with the text; None for lines of plain text. fingerprint: of
    the model, which every answer must have. first: the first line to score. begun: the lines that
    an interrupted run had read. flush: is called with the lines read so far, now and then and at
    the end, also after an error. Raises ClientError; earlier rows are written.
    """
    sent = _LinesToSend(source, field, first, begun)
    count = errors = 0
    try:
        async with aclosing(client.answers(sent, **options)) as answers:
            async for answer in answers:
                now = answer.get("system_fingerprint", fingerprint)
                if now != fingerprint:
                    raise ClientError(
                        f"the server has another model now: {now}, not {fingerprint}, which scored "
                        "the lines before; start again"
                    )
                row = sent.row(answer)
                write(row)
                count += 1
                errors += "error" in row
                if count % WINDOW_LINES == 0:
                    flush(sent.read)
                    progress(source.position)
    finally:
        if count:
            flush(sent.read)
    if sent.failure is not None:
        raise sent.failure
    progress(source.position)
    return count, errors


async def score_to_file(
    client: AsyncClient,
    source: Source,
    field: str | None,
    options: Mapping[str, Any],
    out: Path,
    *,
    restart: bool = False,
    progress: Progress = lambda position: None,
) -> tuple[int, int]:
    """The same to a file; resumes an interrupted run."""
    rows.check(out)
    source.check(Partial.files(out))
    facts = await provenance(client, field, options)
    with Partial(out, facts, restart=restart) as partial:
        counts = await score_rows(
            client,
            source,
            field,
            options,
            partial.write,
            facts["system_fingerprint"],
            partial.next_index,
            partial.read,
            partial.flush,
            progress,
        )
        await asyncio.to_thread(partial.finish, rows.columns_of(options))
    return counts
