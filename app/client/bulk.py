"""Windows: lines sent to the bulk endpoint in bounded requests, and their answers.

A window is one request of a few hundred lines. An HTTP client sends all of its body before it reads
the answer, while the server stops reading if its answers are not read; a window is small enough for
the server to take it all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson

from app.client.errors import ClientError
from app.wire.bulk import BulkError, BulkScore

PATH = "/v1/score/stream"
WINDOW_LINES = 200
WINDOW_BYTES = 1 << 18
MAX_IN_FLIGHT = 4

Line = str | bytes | Mapping[str, Any]
"""A text; or the fields of a body of POST /v1/score, perhaps with `custom_id`; or these as JSON."""
Answer = dict[str, Any]
"""A line's answer; `index` counts all lines."""


@dataclass(slots=True)
class Window:
    """Consecutive lines sent as one request, and their answers so far.

    first: the index of its first line. If the connection breaks, the next request has the lines
    without an answer.
    """

    first: int
    lines: list[bytes] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    _asked: int = 0
    _complete: bool = False
    _rest: bytes = b""
    _refused: bytes = b""
    _torn: bool = False
    """Whether a line of the answer is not JSON: cut off, if the next one announces a stop."""

    @property
    def answered(self) -> bool:
        """Whether every line has its answer."""
        return len(self.answers) == len(self.lines)

    def content(self) -> bytes:
        """The body of the next request: the lines that have no answer yet."""
        self._asked, self._complete = len(self.answers), False
        self._rest = self._refused = b""
        self._torn = False
        return b"".join(self.lines[self._asked :])

    def feed(self, part: bytes) -> None:
        """Reads bytes of an answer. Raises ClientError if they are not one."""
        *ended, self._rest = (self._rest + part).split(b"\n")
        for raw in ended:
            self._read(raw)

    def end(self) -> httpx.Response | httpx.RemoteProtocolError:
        """Why the answer, which has ended, lacks lines, if it does.

        Raises ClientError if it is not a valid one.
        """
        if self._torn and not self._refused:
            raise _missing_answer()
        if self._complete and not self.answered:
            raise ClientError("the server did not answer every line; is it convlm's?")
        if self._refused:
            return httpx.Response(503, content=self._refused)
        line = self.first + len(self.answers)
        return httpx.RemoteProtocolError(f"the answers ended before line {line}")

    def _read(self, raw: bytes) -> None:
        try:
            answer = orjson.loads(raw)
        except orjson.JSONDecodeError:
            self._torn = True
            return
        try:
            if answer.get("object") == "summary":
                self._complete = True
                return
            if "index" not in answer and "error" in answer:
                if answer["error"].get("code") != "engine_error":
                    self._refused = raw  # the server stops
                    return
                # it concerns the line being written: this is its answer, the others are sent again
                self._torn = False
                answer |= {"index": len(self.answers) - self._asked, "custom_id": self._next_id()}
            if answer["index"] != len(self.answers) - self._asked:
                raise KeyError("index")
        except (AttributeError, KeyError):
            raise _missing_answer() from None
        answer["index"] = self.first + len(self.answers)
        self.answers.append(answer)

    def _next_id(self) -> object:
        """The `custom_id` of the next line to be answered."""
        try:
            line = orjson.loads(self.lines[len(self.answers)])
        except (orjson.JSONDecodeError, IndexError):
            return None
        return line.get("custom_id") if isinstance(line, dict) else None


def _missing_answer() -> ClientError:
    return ClientError("an answer to a line is missing; is the server convlm's?")


def windows(lines: Iterable[Line], options: Mapping[str, Any]) -> Iterator[Window]:
    """Cuts lines into windows, with `options` for all. Raises TypeError for a single line."""
    if isinstance(lines, str | bytes | Mapping):
        raise TypeError(f"lines are a list or another iterable, not {type(lines).__name__}")
    window, size = Window(0), 0
    for index, line in enumerate(lines):
        raw = line if isinstance(line, bytes) else _json(line, options)
        raw += b"\n"
        if window.lines and (len(window.lines) == WINDOW_LINES or size + len(raw) > WINDOW_BYTES):
            yield window
            window, size = Window(index), 0
        window.lines.append(raw)
        size += len(raw)
    if window.lines:
        yield window


def _json(line: str | Mapping[str, Any], options: Mapping[str, Any]) -> bytes:
    given = {"input": line} if isinstance(line, str) else line
    inner = given.get("body")
    if isinstance(inner, Mapping):  # OpenAI's batch line
        body = {**given, "body": {**options, **inner}}
    else:
        body = {**options, **given}
    try:
        return orjson.dumps(body)
    except TypeError:  # a lone surrogate: an error of this line alone
        return json.dumps(body).encode()


def parse(answer: Answer) -> BulkScore | BulkError:
    """An answer as an object of its type."""
    if "error" in answer:
        return BulkError.model_validate(answer)
    return BulkScore.model_validate(answer)
