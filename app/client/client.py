"""A client of the server, one request at a time."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from itertools import islice
from typing import Any, Self, TypeVar

import httpx

from app.client import bulk, calls
from app.client.bulk import Answer, Line, Window
from app.client.calls import Call
from app.client.errors import ClientError, Failure, Retries, unreachable
from app.wire.bulk import BulkError, BulkScore
from app.wire.completions import CompletionResponse
from app.wire.models import Model
from app.wire.next import NextResponse
from app.wire.score import ScoreResponse

URL = "http://127.0.0.1:8000"
_LAST_PORT = 65535
Result = TypeVar("Result")


def _root_of(url: str) -> str:
    """A server's address without the /v1 at its end, which OpenAI's client needs.

    Raises ClientError if it is not valid.
    """
    root = url.rstrip("/").removesuffix("/v1")
    try:
        parsed = httpx.URL(root)
    except httpx.InvalidURL as error:
        raise ClientError(f"{url} is not a valid address: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ClientError(f"{url} is not a valid address: it must begin with http:// or https://")
    if (parsed.port or 0) > _LAST_PORT:
        raise ClientError(f"{url} is not a valid address: the largest port is {_LAST_PORT}")
    return root


def connection(url: str, timeout_seconds: float) -> dict[str, Any]:
    """Arguments of an HTTP client. Raises ClientError if the address is not valid.

    The timeout is long for answers, which may wait for other requests, and short for connecting.
    """
    timeout = httpx.Timeout(timeout_seconds, connect=min(10.0, timeout_seconds))
    return {"base_url": _root_of(url), "timeout": timeout, "trust_env": False}


class Client:
    """Scores and completes texts through a server. Close it, or use it as a context manager.

    max_attempts: tries of a request that a busy or unreachable server has not begun. Methods raise
    ApiError for an error of the server, UnreachableError if no try reaches it, and ClientError for
    an invalid answer. `options` are further fields of the endpoint's body (docs/reference/api.md).
    Environment variables for proxies are not read.
    """

    def __init__(
        self,
        url: str = URL,
        *,
        max_attempts: int = 5,
        timeout_seconds: float = 600.0,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.max_attempts, self._sleep = max_attempts, sleep
        self.http = httpx.Client(**connection(url, timeout_seconds), transport=transport)

    def score(self, texts: str | Sequence[str], **options: Any) -> ScoreResponse:
        """Log-probabilities of a text or texts."""
        return self._ask(calls.score(texts, options))

    def next(self, text: str | Sequence[int], **options: Any) -> NextResponse:
        """The most probable tokens after a text or ids (`top_k`), or `candidates` ranked."""
        return self._ask(calls.next_tokens(text, options))

    def complete(self, prompt: str | Sequence[Any] = "", **options: Any) -> CompletionResponse:
        """The continuation of a prompt or prompts."""
        return self._ask(calls.complete(prompt, options))

    def stream(
        self, prompt: str | Sequence[Any] = "", **options: Any
    ) -> Iterator[CompletionResponse]:
        """The same in chunks, as it is generated. Once it has begun it is not retried."""
        call = calls.complete(prompt, options, stream=True)
        retries = Retries(self.max_attempts, self.http.base_url)
        begun = False
        while True:
            try:
                with self.http.stream(call.method, call.path, content=call.content) as response:
                    if response.status_code == 200:
                        begun = True
                        for line in response.iter_lines():
                            yield from calls.chunk_of(line)
                        return
                    response.read()
                    self._sleep(retries.pause(response, repeatable=False))
            except httpx.TransportError as error:
                if begun:
                    raise unreachable(error, self.http.base_url) from None
                self._sleep(retries.pause(error, repeatable=False))

    def models(self) -> list[Model]:
        """The models that the server has."""
        return self._ask(calls.models())

    def post(
        self, path: str, body: Mapping[str, Any], *, repeatable: bool = False
    ) -> dict[str, Any]:
        """The answer to any body. repeatable: whether it is sent again if the connection breaks."""
        return self._ask(calls.post(path, body, repeatable=repeatable))

    def score_lines(
        self, lines: Iterable[Line], *, max_in_flight: int = bulk.MAX_IN_FLIGHT, **options: Any
    ) -> Iterator[BulkScore | BulkError]:
        """Scores of any number of texts in their order, through the bulk endpoint.

        An invalid line gives a BulkError. Lines are read as they are needed, some windows ahead.
        If a connection breaks, only the lines that have no answer yet are sent again.
        """
        for answer in self.answers(lines, max_in_flight=max_in_flight, **options):
            yield bulk.parse(answer)

    def answers(
        self, lines: Iterable[Line], *, max_in_flight: int = bulk.MAX_IN_FLIGHT, **options: Any
    ) -> Iterator[Answer]:
        """Like `score_lines`, but each answer as a dictionary."""
        waiting = bulk.windows(lines, options)
        running: deque[tuple[Window, Future[None]]] = deque()
        closed = threading.Event()
        try:
            while True:
                for window in islice(waiting, max_in_flight - len(running)):
                    running.append((window, self._start(window, closed)))
                if not running:
                    return
                window, future = running.popleft()
                wait([future])
                yield from window.answers  # also before an error is raised
                future.result()
        finally:
            closed.set()

    def close(self) -> None:
        """Closes the connections."""
        self.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, call: Call[Result]) -> Result:
        retries = Retries(self.max_attempts, self.http.base_url)
        while True:
            try:
                response = self.http.request(call.method, call.path, content=call.content)
            except httpx.TransportError as error:
                self._sleep(retries.pause(error, repeatable=call.repeatable))
                continue
            if response.status_code == 200:
                return call.read(response.content)
            self._sleep(retries.pause(response, repeatable=call.repeatable))

    def _start(self, window: Window, closed: threading.Event) -> Future[None]:
        """Sends a window on a thread of its own, which is abandoned once `closed` is set."""
        future: Future[None] = Future()

        def run() -> None:
            try:
                self._answer(window, closed)
            except BaseException as error:  # is raised by `answers`
                future.set_exception(error)
            else:
                future.set_result(None)

        threading.Thread(target=run, name="convlm-window", daemon=True).start()
        return future

    def _answer(self, window: Window, closed: threading.Event) -> None:
        retries = Retries(self.max_attempts, self.http.base_url)
        while not (window.answered or closed.is_set()):
            before = len(window.answers)
            failure: Failure
            try:
                with self.http.stream("POST", bulk.PATH, content=window.content()) as response:
                    failure = response
                    if response.status_code != 200:
                        response.read()
                    else:
                        for part in response.iter_bytes():
                            window.feed(part)
                        failure = window.end()
            except httpx.TransportError as error:
                failure = error
            if len(window.answers) > before:
                retries.succeeded()
            if not window.answered:
                self._sleep(retries.pause(failure, repeatable=True))
