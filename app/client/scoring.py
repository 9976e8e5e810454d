"""Scores of many texts for evaluations, and the lines of the files that evaluations come in."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from app.client.async_client import AsyncClient
from app.client.errors import ClientError
from app.client.files import Source
from app.wire.bulk import BulkError
from app.wire.score import TextScore

Item = TypeVar("Item")
Progress = Callable[[int], object]
"""Called with the number of items that were finished since the last call."""


async def score(
    client: AsyncClient, texts: Iterable[str], **options: Any
) -> AsyncGenerator[TextScore]:
    """Scores of texts in their order. Close the generator to cancel what is in flight.

    options: further fields of a body of POST /v1/score. Raises ClientError, also for a text that
    cannot be scored.
    """
    lines = ({"input": text} for text in texts)
    async with aclosing(client.score_lines(lines, **options)) as answers:
        async for answer in answers:
            if isinstance(answer, BulkError):
                raise ClientError(f"text {answer.index + 1}: {answer.error.message}")
            yield answer.data[0]


def read_lines(source: Source) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 file that are not blank, with their numbers from 1. Raises ClientError."""
    for number, line in enumerate(source.lines(), 1):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise ClientError(f"{source.name}, line {number}: not UTF-8: {error}") from None
        if text.strip():
            yield number, text


def spread(items: Sequence[Item], limit: int | None) -> Sequence[Item]:
    """At most `limit` items, evenly spread over all, so that each part of a file has its share."""
    if limit is None or limit >= len(items):
        return items
    return [items[number * len(items) // limit] for number in range(limit)]
