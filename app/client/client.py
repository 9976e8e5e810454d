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
from app.client.errors import ClientError, refusal, unreachable
from app.client.retries import Retries
from app.wire.bulk import BulkError, BulkScore
from app.wire.completions import CompletionResponse
from app.wire.models import Model
from app.wire.next import NextResponse
from app.wire.score import ScoreResponse

URL = "http://127.0.0.1:8000"
_LAST_PORT = 65535
Result = TypeVar("Result")


def root_of(url: str) -> str:
    """A server's address, also of one that ends in /v1, as that of OpenAI's client does.

    Raises ClientError if it is none.
    """
    root = url.rstrip("/").removesuffix("/v1")
    try:
        parsed = httpx.URL(root)
    except httpx.InvalidURL as error:
        raise ClientError(f"{url} is no address: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ClientError(f"{url} is no address: one begins with http:// or https://")
    if (parsed.port or 0) > _LAST_PORT:
        raise ClientError(f"{url} is no address: ports end at {_LAST_PORT}")
    return root


def timeouts(timeout_seconds: float) -> httpx.Timeout:
    """Long for answers, which may wait behind others' work; short for connecting."""
    return httpx.Timeout(timeout_seconds, connect=min(10.0, timeout_seconds))


class Client:
    """Scores and completes through a server; to be closed, or used as a context.

    max_attempts: tries of a request that a busy or unreachable server has not begun. Methods raise
    ApiError for an error that the server gives, UnreachableError when none of the tries gets
    through, ClientError for an answer that is none. `options` are further fields of the endpoint's
    body (docs/reference/api.md). Environment variables for proxies are not read.
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
        self.http = httpx.Client(
            base_url=root_of(url),
            timeout=timeouts(timeout_seconds),
            trust_env=False,
            transport=transport,
        )

    def score(self, texts: str | Sequence[str], **options: Any) -> ScoreResponse:
        """Log-probabilities of a text or texts."""
        return self._ask(calls.score(texts, options))

    def next(self, text: str | Sequence[int], **options: Any) -> NextResponse:
        """The most probable tokens after a text or ids (`top_k`), or `candidates` ranked."""
        return self._ask(calls.following(text, options))

    def complete(self, prompt: str | Sequence[Any] = "", **options: Any) -> CompletionResponse:
        """Text that goes on from a prompt or prompts."""
        return self._ask(calls.complete(prompt, options))

    def stream(
        self, prompt: str | Sequence[Any] = "", **options: Any
    ) -> Iterator[CompletionResponse]:
        """The same in chunks, as it is generated. Nothing is tried again once it has begun."""
        call = calls.complete(prompt, options, stream=True)
        retries = Retries(self.max_attempts)
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
                    self._wait(retries, response, repeatable=False)
            except httpx.TransportError as error:
                if begun:
                    raise unreachable(error, self.http.base_url) from None
                self._wait(retries, error, repeatable=False)

    def models(self) -> list[Model]:
        """What is served."""
        return self._ask(calls.models())

    def post(
        self, path: str, body: Mapping[str, Any], *, repeatable: bool = False
    ) -> dict[str, Any]:
        """The answer to any body. repeatable: it may be sent again when the connection breaks."""
        return self._ask(calls.posted(path, body, repeatable=repeatable))

    def score_lines(
        self, lines: Iterable[Line], *, max_in_flight: int = bulk.MAX_IN_FLIGHT, **options: Any
    ) -> Iterator[BulkScore | BulkError]:
        """Scores of any number of texts in their order, through the bulk endpoint.

        A line that is wrong gives a BulkError. Lines are taken as they are needed, some windows
        ahead. A connection that breaks costs only the lines that have no answer yet.
        """
        for answer in self.answers(lines, max_in_flight=max_in_flight, **options):
            yield bulk.typed(answer)

    def answers(
        self, lines: Iterable[Line], *, max_in_flight: int = bulk.MAX_IN_FLIGHT, **options: Any
    ) -> Iterator[Answer]:
        """As `score_lines`, each answer as it came."""
        waiting = bulk.windows(lines, options)
        running: deque[tuple[Window, Future[None]]] = deque()
        left = threading.Event()
        try:
            while True:
                for window in islice(waiting, max_in_flight - len(running)):
                    running.append((window, self._begun(window, left)))
                if not running:
                    return
                window, future = running.popleft()
                wait([future])
                yield from window.answers  # also before an error: they need not come again
                future.result()
        finally:
            left.set()

    def close(self) -> None:
        """Closes connections."""
        self.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, call: Call[Result]) -> Result:
        retries = Retries(self.max_attempts)
        while True:
            try:
                response = self.http.request(call.method, call.path, content=call.content)
            except httpx.TransportError as error:
                self._wait(retries, error, repeatable=call.repeatable)
                continue
            if response.status_code == 200:
                return call.read(response.content)
            self._wait(retries, response, repeatable=call.repeatable)

    def _begun(self, window: Window, left: threading.Event) -> Future[None]:
        """Has a window answered on a thread that nobody waits for once `left` is set."""
        future: Future[None] = Future()

        def run() -> None:
            try:
                self._answer(window, left)
            except BaseException as error:  # raised where the answers are read
                future.set_exception(error)
            else:
                future.set_result(None)

        threading.Thread(target=run, name="convlm-window", daemon=True).start()
        return future

    def _answer(self, window: Window, left: threading.Event) -> None:
        retries = Retries(self.max_attempts)
        while not (window.answered or left.is_set()):
            before = len(window.answers)
            failure: httpx.Response | httpx.TransportError
            try:
                with self.http.stream("POST", bulk.PATH, content=window.content()) as response:
                    failure = response
                    if response.status_code != 200:
                        response.read()
                    else:
                        for part in response.iter_bytes():
                            window.feed(part)
                        window.end()
                        failure = window.broken()
            except httpx.TransportError as error:
                failure = error
            if len(window.answers) > before:
                retries.succeeded()
            if not window.answered:
                self._wait(retries, failure, repeatable=True)

    def _wait(
        self,
        retries: Retries,
        failure: httpx.Response | httpx.TransportError,
        *,
        repeatable: bool,
    ) -> None:
        pause = retries.pause(failure, repeatable=repeatable)
        if pause is None:
            if isinstance(failure, httpx.Response):
                raise refusal(failure)
            raise unreachable(failure, self.http.base_url)
        self._sleep(pause)
