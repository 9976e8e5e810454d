"""The clients of `soak`: right and wrong requests, and clients that leave early."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import urlsplit

import aiohttp
import orjson

_SHORT_TOKENS, _STREAM_TOKENS = 20, 60
_LONG_LINES, _BULK_LINES = 20, 50
_LEAVE_SECONDS = 0.05
_MADE_ANEW = frozenset({"id", "created", "system_fingerprint"})
"""Fields that differ between equal answers, the last with the bundle."""
_REFUSED = (b'"overloaded"', b'"not_ready"', b'"timeout"')

HOSTILE = (
    b"",
    b"{",
    b"[" * 50_000,
    b'{"input": ' + b"[" * 150 + b"]" * 150 + b"}",
    b'{"input": [' + b"[]," * 20_000 + b"[]]}",
    b'{"input": 1e999}',
    b'{"input": "\xff\xfe"}',
    b'{"input": "\\ud800"}',
    b'{"input": [' + b"1" * 5_000 + b"]}",
    b'{"input": "a", "no_such_field": {}}',
    b'{"input": ["' + b'","'.join([b"a"] * 2_000) + b'"]}',
)
"""Bodies of /v1/score that are refused with a 4xx status."""


_Request = tuple[str, dict[str, object]]
"""A path and a body."""


class WrongAnswerError(Exception):
    """An answer that should have been another."""


@dataclass(slots=True)
class Clients:
    """What is asked, and how many were answered how, by kind of request.

    bad: ids of a text with which the engine fails; None if it never does. wrong: messages of
    answers that should have been others.
    """

    url: str
    http: aiohttp.ClientSession
    texts: list[str]
    bad: list[int] | None
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    expected: dict[str, bytes] = field(default_factory=dict)
    """The answers of the fixed requests by their paths and bodies."""
    _random: random.Random = field(default_factory=lambda: random.Random(0))

    async def ask(self) -> None:
        """One request of a random kind."""
        kind = self._random.choices(KINDS, [weight for _, weight, _ in KINDS])[0]
        await self.ask_kind(kind[0], kind[2])

    async def ask_kind(self, name: str, send: Callable[[Clients], Awaitable[str]]) -> None:
        """One request; whatever goes wrong is noted."""
        try:
            outcome = await send(self)
        except (WrongAnswerError, aiohttp.ClientError, OSError, TimeoutError) as error:
            outcome = "wrong"
            self.wrong.append(f"{name}: {error!r}"[:300])
        self.counts[name, outcome] += 1

    def choose(self, requests: tuple[_Request, ...]) -> _Request:
        """One at random."""
        return self._random.choice(requests)

    def lines(self, number: int) -> list[str]:
        """Random lines of the text."""
        return self._random.choices(self.texts, k=number)

    async def post(self, path: str, body: object) -> tuple[str, bytes]:
        """The outcome of a right request, and its answer."""
        async with self.http.post(path, data=orjson.dumps(body)) as answer:
            return self.outcome(answer.status, content := await answer.read()), content

    def outcome(self, status: int, content: bytes) -> str:
        """Right, refused, or failed with the engine. Raises WrongAnswerError otherwise."""
        if b'"engine_error"' in content:
            return "engine_error"
        if any(code in content for code in _REFUSED):
            return "refused"
        if status != 200:
            raise WrongAnswerError(f"{status} {content[:200]!r}")
        return "right"

    async def ask_all_fixed(self) -> None:
        """Asks each of the fixed requests."""
        for fixed in FIXED:
            await self.ask_kind("fixed", partial(Clients.check_fixed, fixed=fixed))

    async def check_fixed(self, fixed: _Request) -> str:
        """Asks a request whose answer must be the same bits as the first one."""
        path, body = fixed
        outcome, content = await self.post(path, body)
        if outcome == "right":
            name, lasting = f"{path} {body}", orjson.dumps(_lasting(orjson.loads(content)))
            if self.expected.setdefault(name, lasting) != lasting:
                raise WrongAnswerError(f"{name[:80]}: another answer than before")
        return outcome

    async def hostile(self) -> str:
        """A body that must be refused."""
        async with self.http.post("/v1/score", data=self._random.choice(HOSTILE)) as answer:
            content = await answer.read()
            if 400 <= answer.status < 500:
                return "right"
            return self.outcome(answer.status if answer.status != 200 else 0, content)

    async def leave(self, path: str, body: bytes, sent: float = 1.0, read: int = 0) -> str:
        """Sends a share of a body, reads so many parts of the answer, and closes."""
        address = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        head = f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {len(body)}"
        writer.write(head.encode() + b"\r\n\r\n" + body[: round(sent * len(body))])
        for _ in range(read):
            await reader.read(4096)
        await asyncio.sleep(_LEAVE_SECONDS)
        writer.close()
        return "left"


def _lasting(part: object) -> object:
    if isinstance(part, dict):
        return {key: _lasting(value) for key, value in part.items() if key not in _MADE_ANEW}
    return [_lasting(value) for value in part] if isinstance(part, list) else part


async def _short(clients: Clients) -> str:
    return (await clients.post("/v1/score", {"input": clients.lines(1)}))[0]


async def _long(clients: Clients) -> str:
    body = {"input": " ".join(clients.lines(_LONG_LINES)), "detail": "tokens"}
    return (await clients.post("/v1/score", body))[0]


async def _rescore(clients: Clients) -> str:
    hypotheses = [line[:200] for line in clients.lines(10)]
    body = {"utterances": [{"context": clients.lines(1)[0], "hypotheses": hypotheses}]}
    return (await clients.post("/v1/rescore", body))[0]


async def _next(clients: Clients) -> str:
    return (await clients.post("/v1/next", {"input": clients.lines(1)[0]}))[0]


async def _completion(clients: Clients) -> str:
    body = {"prompt": clients.lines(1)[0], "max_tokens": _SHORT_TOKENS, "ignore_eos": True}
    return (await clients.post("/v1/completions", body))[0]


def _stream_body(clients: Clients, tokens: int) -> dict[str, object]:
    prompt = clients.lines(1)[0]
    return {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True}


async def _stream(clients: Clients) -> str:
    outcome, content = await clients.post("/v1/completions", _stream_body(clients, _STREAM_TOKENS))
    if outcome == "right" and not content.endswith(b"data: [DONE]\n\n"):
        raise WrongAnswerError(f"a stream ends with {content[-100:]!r}")
    return outcome


def _bulk_body(clients: Clients) -> bytes:
    return b"\n".join(orjson.dumps({"input": line}) for line in clients.lines(_BULK_LINES))


async def _bulk(clients: Clients) -> str:
    async with clients.http.post("/v1/score/stream", data=_bulk_body(clients)) as answer:
        outcome = clients.outcome(answer.status, content := await answer.read())
    summary = orjson.loads(content.splitlines()[-1])
    if outcome == "right" and (summary.get("lines"), summary.get("errors")) != (_BULK_LINES, 0):
        raise WrongAnswerError(f"bulk ends with {summary}")
    return outcome


async def _left_body(clients: Clients) -> str:
    return await clients.leave("/v1/score", orjson.dumps({"input": clients.lines(50)}), sent=0.5)


async def _left_waiting(clients: Clients) -> str:
    return await clients.leave("/v1/score", orjson.dumps({"input": clients.lines(50)}))


async def _left_stream(clients: Clients) -> str:
    body = orjson.dumps(_stream_body(clients, 1000))
    return await clients.leave("/v1/completions", body, read=3)


async def _left_bulk(clients: Clients) -> str:
    return await clients.leave("/v1/score/stream", _bulk_body(clients), sent=0.7)


async def _poisoned(clients: Clients) -> str:
    if clients.bad is None:
        return await _short(clients)
    outcome, content = await clients.post("/v1/score", {"input": clients.bad})
    if outcome == "right":
        raise WrongAnswerError(f"the engine should fail: {content[:200]!r}")
    return outcome


async def _fixed(clients: Clients) -> str:
    return await clients.check_fixed(clients.choose(FIXED))


KINDS: tuple[tuple[str, float, Callable[[Clients], Awaitable[str]]], ...] = (
    ("short score", 30, _short),
    ("long score", 5, _long),
    ("rescore", 10, _rescore),
    ("next", 10, _next),
    ("completion", 10, _completion),
    ("stream", 8, _stream),
    ("bulk", 4, _bulk),
    ("left in the body", 4, _left_body),
    ("left while waiting", 4, _left_waiting),
    ("left in a stream", 4, _left_stream),
    ("left in bulk", 3, _left_bulk),
    ("hostile body", 6, Clients.hostile),
    ("fault of the engine", 1, _poisoned),
    ("fixed", 5, _fixed),
)
"""Name, weight and function of each kind."""

_SENTENCE = "The history of the town is older than its walls, and nobody has written it down."
FIXED: tuple[_Request, ...] = (
    ("/v1/score", {"input": _SENTENCE}),
    ("/v1/score", {"input": [_SENTENCE * n for n in (1, 7, 30)], "top_logprobs": 3}),
    (
        "/v1/rescore",
        {"utterances": [{"hypotheses": [_SENTENCE[:n] for n in range(20, 80, 5)], "context": "A"}]},
    ),
    ("/v1/next", {"input": _SENTENCE, "top_k": 50}),
    ("/v1/completions", {"prompt": _SENTENCE, "max_tokens": 40, "seed": 7, "logprobs": 2}),
    ("/v1/completions", {"prompt": _SENTENCE, "max_tokens": 40, "temperature": 0, "n": 2}),
)
"""Requests whose answers must stay the same bits."""


def table(counts: Counter[tuple[str, str]]) -> str:
    """A Markdown table of the outcomes of each kind."""
    outcomes = ("right", "left", "refused", "engine_error", "wrong")
    rows = [f"| requests | {' | '.join(outcomes)} |", "| --- |" + " --: |" * len(outcomes)]
    for name in dict.fromkeys(name for name, _, _ in KINDS):
        numbers = " | ".join(f"{counts[name, outcome]:,}" for outcome in outcomes)
        rows.append(f"| {name} | {numbers} |")
    return "\n".join(rows) + "\n"
