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

Told = Callable[[int], object]
"""Is told the number of the file's bytes that are read."""


_NO_TEXT = b"null"
"""Sent in place of a line that holds no text: its answer, an error, comes in its turn."""


class _Sent:
    """Lines of a file as they are sent, and what is known of those that have no answer yet.

    first: the line to begin with. begun: the lines that were read when those before got their rows.
    """

    def __init__(self, source: Source, field: str | None, first: int, begun: Read | None) -> None:
        self.source, self.field, self.first, self.begun = source, field, first, begun
        self._waiting: deque[tuple[int, str | None, str | None]] = deque()
        """Of each line that has no answer yet: its index, its id, and why it was not sent."""
        self._lines, self._digest = 0, hashlib.sha256()
        self.failure: ClientError | None = None
        """Why the file could not be read further; the lines before get their rows all the same."""

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
                text, custom_id = self._text(line)
                self._waiting.append((index, custom_id, None))
                yield {"input": text}
            except files.LineError as error:
                self._waiting.append((index, error.custom_id, str(error)))
                yield _NO_TEXT

    def _from_first(self) -> Iterator[tuple[int, bytes]]:
        """Raises ClientError if the lines are not those of which there are rows."""
        lines = self._counted()
        held: list[tuple[int, bytes]] = []
        if self.begun is not None:
            known = islice(lines, self.begun.lines)
            held = [(index, line) for index, line in known if index >= self.first]
            if self.read != self.begun:
                raise ClientError(
                    f"{self.source.name}: its first {self.begun.lines} lines are not those that "
                    "have rows; give the same, or --restart to begin anew"
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
        if error is None:
            return rows.row_of(answer, index, custom_id)
        return rows.error_row(index, custom_id, error)

    def _text(self, line: bytes) -> tuple[str, str | None]:
        if self.field is None:
            return files.text_of(line), None
        return files.text_in(line, self.field)


async def made_of(
    client: AsyncClient, field: str | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What decides every row but the lines: how they are read and scored, and by which model."""
    named = {"model": options["model"]} if "model" in options else {}
    probe = await client.score("a", detail="totals", **named)
    return {
        "field": field,
        "options": dict(options),
        "system_fingerprint": probe.system_fingerprint,
    }


async def score_rows(
    client: AsyncClient,
    source: Source,
    field: str | None,
    options: Mapping[str, Any],
    write: Callable[[Row], object],
    made_by: str | None,
    first: int = 0,
    begun: Read | None = None,
    flush: Callable[[Read], object] = lambda read: None,
    told: Told = lambda position: None,
) -> tuple[int, int]:
    """Writes the row of every line that is not blank, in order; how many, and how many errors.

    field: of lines of JSON, the one that holds the text; None for lines of plain text. made_by: the
    fingerprint that every answer must have. first: the line to begin with. begun: the lines that
    were read when those before were written. flush: is told what has been read, now and then and at
    the end, also one before its time. Raises ClientError; what came before is written.
    """
    sent = _Sent(source, field, first, begun)
    count = errors = 0

    try:
        async with aclosing(client.answers(sent, **options)) as answers:
            async for answer in answers:
                now = answer.get("system_fingerprint", made_by)
                if now != made_by:
                    raise ClientError(
                        f"the server has another model now: {now}, not {made_by}, which the lines "
                        "before were scored by; begin anew"
                    )
                row = sent.row(answer)
                write(row)
                count += 1
                errors += "error" in row
                if count % WINDOW_LINES == 0:
                    flush(sent.read)
                    told(source.position)
    finally:
        if count:
            flush(sent.read)
    if sent.failure is not None:
        raise sent.failure
    told(source.position)
    return count, errors


async def score_to_file(
    client: AsyncClient,
    source: Source,
    field: str | None,
    options: Mapping[str, Any],
    out: Path,
    *,
    restart: bool = False,
    told: Told = lambda position: None,
) -> tuple[int, int]:
    """The same into a file, going on where an interrupted run was."""
    rows.check(out)
    source.check(Partial.files(out))
    facts = await made_of(client, field, options)
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
            told,
        )
        await asyncio.to_thread(partial.finish, rows.columns_of(options))
    return counts
