"""Valid requests with bytes flipped, inserted, dropped, cut off, repeated and split, by a seed."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator

from tests.bench.hostile.wire import Part, Tally, exchange, get, post

_PATHS = [
    *("/livez", "/readyz", "/health", "/ping", "/version", "/metrics", "/openapi.json", "/docs"),
    *("/v1/models", "/v1/models/tiny", "/v1/tokenizer_info", "/tokenizer_info", "/nowhere"),
]
_POSTS: list[tuple[str, dict[str, object]]] = [
    ("/v1/score", {"input": "a cat", "words": True, "ranks": True}),
    ("/v1/score", {"input": ["a cat", "naïve"], "context": "the", "top_logprobs": 2}),
    ("/v1/score", {"input": [[5, 6], [7]], "detail": "totals", "add_eos": True}),
    ("/v1/score", {"input": "a cat", "cache": True, "add_special_tokens": False}),
    ("/v1/rescore", {"utterances": [{"hypotheses": [{"text": "a cat", "prior": -1.5}]}]}),
    ("/v1/rescore", {"utterances": [{"context": "a", "hypotheses": ["b", "c"]}], "weight": 0.5}),
    ("/v1/next", {"input": "a", "top_k": 3}),
    ("/v1/next", {"input": [5], "candidates": [" cat", " dog"]}),
    ("/v1/completions", {"prompt": "a", "max_tokens": 4, "seed": 1, "logprobs": 2, "n": 2}),
    ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 4, "stream": True, "stop": ["x"]}),
    ("/v1/completions", {"prompt": [5, 6], "max_tokens": 3, "logit_bias": {"7": 2.5}}),
    ("/v1/completions", {"prompt": "a", "max_tokens": 0, "echo": True, "prompt_logprobs": 1}),
    ("/v1/tokenize", {"prompt": "The naïve cat", "return_offsets": True}),
    ("/detokenize", {"tokens": [5, 6, 7]}),
    ("/ping", {}),
    ("/v1/chat/completions", {"messages": []}),
]
_LINES = b'{"input": "a cat"}\n{"custom_id": "b", "input": ["a", "b"]}\n\n{"input": 3}\n'
_WORDS = [
    *(b"\r\n", b"\n", b"\r", b"\0", b" ", b":", b"\r\n\r\n", b"%00", b"../", b"?", b"#"),
    *(b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\\ud800", b"\\", b'"', b"{", b"[", b"]", b"}"),
    *(b"NaN", b"-1", b"1e999", b"null", b"true", b"9" * 30, b"0.1", b"-", b"," * 20, b"[" * 300),
    *(b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n", b"Connection: close\r\n"),
    *(
        b"Expect: 100-continue\r\n",
        b"Upgrade: h2c\r\n",
        b"Host: x\r\n",
        b"Content-Encoding: gzip\r\n",
    ),
    *(b" HTTP/1.0", b" HTTP/2.0", b"a" * 5000, b"GET / HTTP/1.1\r\nHost: y\r\n\r\n"),
]
_AT_ONCE = 40
_PATIENCE_SECONDS = 120.0
"""A changed digit can ask for thousands of tokens."""


def valid() -> list[bytes]:
    """A request of every kind, right as it is."""
    bodies = [(path, json.dumps(body, ensure_ascii=False).encode()) for path, body in _POSTS]
    requests = [get(path) for path in _PATHS]
    requests += [post(path, body) for path, body in bodies]
    requests.append(post("/v1/score/stream?order=completed", _LINES))
    requests += [
        _chunked(path, body) for path, body in [*bodies[::4], ("/v1/score/stream", _LINES)]
    ]
    return requests


def _chunked(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    parts = [body[:7], body[7:]]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts if part)
    return head.encode() + chunks + b"0\r\n\r\n"


def mutation(number: int, seed: int) -> list[bytes]:
    """The packets of one changed request; the same for the same number and seed."""
    rng = random.Random(f"{seed} {number}")
    request = rng.choice(valid())
    head, _, body = request.partition(b"\r\n\r\n")
    if body and b"chunked" not in head and rng.random() < 0.5:  # the parser of JSON sees these
        path = head.split()[1].decode()
        request = post(path, _changed(rng, body))
    else:
        request = _changed(rng, request)
    if rng.random() < 0.2:
        request += rng.choice(valid())
    return list(_split(rng, request))


def _changed(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        start = rng.randrange(len(changed) + 1)
        end = min(len(changed), start + rng.choice((1, 1, 2, 8, 50)))
        match rng.randrange(7):
            case 0 if start < len(changed):
                changed[start] ^= 1 << rng.randrange(8)
            case 1 if start < len(changed):
                changed[start] = rng.randrange(256)
            case 2:
                changed[start:start] = rng.randbytes(rng.randrange(1, 9))
            case 3:
                changed[start:start] = rng.choice(_WORDS)
            case 4:
                del changed[start:end]
            case 5:
                changed[start:start] = changed[start:end] * rng.choice((1, 2, 20))
            case 6 if rng.random() < 0.5:
                del changed[start:]
    return bytes(changed)


def _split(rng: random.Random, request: bytes) -> Iterator[bytes]:
    cuts = sorted(rng.randrange(len(request) + 1) for _ in range(rng.choice((0, 0, 1, 2, 6))))
    for start, end in zip([0, *cuts], [*cuts, len(request)], strict=True):
        if end > start:
            yield request[start:end]


async def send(port: int, count: int, seed: int, first: int = 0) -> Tally:
    """Sends so many mutations, some at a time, each on a connection of its own."""
    tally = Tally()
    numbers = iter(range(first, first + count))

    async def client() -> None:
        for number in numbers:
            packets = mutation(number, seed)
            parts = [piece for part in packets for piece in (part, 0.0)]
            received = await exchange(port, parts, patience=_PATIENCE_SECONDS)
            # an answer that begins before a later part of the body turns out to be wrong
            may_break = b"/v1/score/stream" in b"".join(packets)
            tally.add(f"mutation {number} of seed {seed}", received, may_break=may_break)

    async with asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(client())
    return tally


async def send_unfinished(port: int, count: int, seed: int) -> Tally:
    """Sends requests cut off at random, whose clients then wait a little and leave."""
    tally, rng = Tally(), random.Random(seed)

    async def one(raw: bytes) -> None:
        parts: list[Part] = [raw[: rng.randrange(len(raw))]]
        received = await exchange(port, parts, patience=2.0, half_close=False)
        tally.add("a request that is cut off", received, may_wait=True)

    for start in range(0, count, _AT_ONCE):
        some = [rng.choice(valid()) for _ in range(min(_AT_ONCE, count - start))]
        await asyncio.gather(*map(one, some))
    return tally
