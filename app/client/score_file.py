"""Scores every line of a file."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

from app.client import files, rows
from app.client.async_client import AsyncClient
from app.client.bulk import WINDOW_LINES
from app.client.files import Source
from app.client.partial import Partial
from app.client.rows import Row

Told = Callable[[int], object]
"""Is told the number of the file's bytes that are read."""


class _Sent:
    """Lines of a file as they are sent, and rows for those that cannot be."""

    def __init__(self, source: Source, field: str | None, first: int) -> None:
        self.source, self.field, self.first = source, field, first
        self._waiting: deque[int | Row] = deque()
        """For each line in order: its index if it was sent, else its row."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for index, line in enumerate(self.source.lines()):
            if index < self.first or not line.strip():
                continue
            try:
                text = (
                    files.text_of(line) if self.field is None else files.text_in(line, self.field)
                )
            except ValueError as error:
                self._waiting.append(rows.error_row(index, str(error)))
                continue
            self._waiting.append(index)
            yield text

    def rows(self, answer: Row) -> Iterator[Row]:
        """The row of the next answer, behind those of lines before it that were not sent."""
        yield from self.unsent()
        index = self._waiting.popleft()
        assert isinstance(index, int)
        yield rows.row_of(answer, index)

    def unsent(self) -> Iterator[Row]:
        """Rows of the next lines, as far as they were not sent."""
        while self._waiting and not isinstance(self._waiting[0], int):
            yield self._waiting.popleft()  # type: ignore[misc]


async def made_of(
    client: AsyncClient, source: Source, field: str | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What decides every row: the file, how it is read and scored, and by which model."""
    named = {"model": options["model"]} if "model" in options else {}
    probe = await client.score("a", detail="totals", **named)
    return {
        "input": source.name,
        "bytes": source.size,
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
    first: int = 0,
    flush: Callable[[], object] = lambda: None,
    told: Told = lambda position: None,
) -> tuple[int, int]:
    """Writes the row of every line that is not blank, in order; how many, and how many errors.

    field: of lines of JSON, the one that holds the text; None for lines of plain text. first: the
    line to begin with. Raises ClientError; what came before is written.
    """
    sent = _Sent(source, field, first)
    count = errors = 0

    def written(some: Iterator[Row]) -> None:
        nonlocal count, errors
        for row in some:
            write(row)
            count += 1
            errors += "error" in row
            if count % WINDOW_LINES == 0:
                flush()
                told(source.position)

    async with aclosing(client.answers(sent, **options)) as answers:
        async for answer in answers:
            written(sent.rows(answer))
    written(sent.unsent())
    flush()
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
    facts = await made_of(client, source, field, options)
    with Partial(out, facts, restart=restart) as partial:
        first = partial.next_index
        counts = await score_rows(
            client, source, field, options, partial.write, first, partial.flush, told
        )
        partial.finish(lists=options.get("detail") == "tokens")
    return counts
