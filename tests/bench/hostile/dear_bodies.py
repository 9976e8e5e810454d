"""Bodies that are dear after parsing, bodies of lines, and bodies with wrong lengths."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable

from tests.bench.hostile.bodies import LONG, MANY, MOST, Kind, counted, filled, repeated
from tests.bench.hostile.wire import Part, post

_SCORE, _COMPLETIONS, _BULK = "/v1/score", "/v1/completions", "/v1/score/stream"
_TOKENIZE, _DETOKENIZE = "/v1/tokenize", "/v1/detokenize"


def _letters(count: int, alphabet: str = "abcdefghijklmnopqrstuvwxyz") -> str:
    """Random characters, always the same."""
    return "".join(random.Random(0).choices(alphabet, k=count))


def _text(field: str, text: str, **others: object) -> bytes:
    return json.dumps({field: text, **others}, ensure_ascii=False).encode()


_CJK = "".join(map(chr, range(0x4E00, 0x5E00)))
_WORD = 1 << 20

TEXTS = [
    Kind("a word of 1 MB", _SCORE, lambda: _text("input", "a" * _WORD, words=True), work=True),
    Kind(
        "a word of random letters",
        _SCORE,
        lambda: _text("input", _letters(_WORD), detail="totals"),
        work=True,
    ),
    Kind("a word of accents", _SCORE, lambda: _text("input", "e\u0301" * (_WORD // 3)), work=True),
    Kind(
        "a word of 16 MB to tokenise",
        _TOKENIZE,
        lambda: filled(b'{"prompt":"', b"ab", b'"}'),
        work=True,
    ),
    Kind(
        "random letters to tokenise",
        _TOKENIZE,
        lambda: _text("prompt", _letters(4 * _WORD)),
        work=True,
    ),
    Kind(
        "Chinese to tokenise, all listed",
        _TOKENIZE,
        lambda: _text(
            "prompt",
            _letters(300_000, _CJK),
            return_token_strs=True,
            return_token_bytes=True,
            return_offsets=True,
        ),
        work=True,
    ),
    Kind(
        "punctuation to tokenise",
        _TOKENIZE,
        lambda: _text("prompt", _letters(2 * _WORD, "!?.,;:-'\" ")),
        work=True,
    ),
    Kind(
        "white space to tokenise", _TOKENIZE, lambda: filled(b'{"prompt":"', b" ", b'"}'), work=True
    ),
    Kind(
        "emoji to tokenise",
        _TOKENIZE,
        lambda: _text("prompt", "\U0001f469\u200d\U0001f680" * 200_000),
        work=True,
    ),
    Kind(
        "1,000,000 ids to text",
        _DETOKENIZE,
        lambda: counted(b'{"tokens":[', b"5000", b"]}", 1_000_000),
        work=True,
    ),
    Kind(
        "5,000,000 ids to text",
        _DETOKENIZE,
        lambda: counted(b'{"tokens":[', b"50", b"]}", 5_000_000),
    ),
    Kind(
        "texts of 1 MB, 15 of them",
        _SCORE,
        lambda: json.dumps({"input": [_letters(_WORD)] * 15}).encode(),
        work=True,
    ),
    Kind(
        "stop strings of 1,000 characters",
        _COMPLETIONS,
        lambda: json.dumps(
            {"prompt": "a", "max_tokens": 200, "stop": [f"{n:01000}" for n in range(16)]}
        ).encode(),
        work=True,
    ),
    Kind(
        "1,024 times 16,384 tokens",
        _COMPLETIONS,
        lambda: b'{"prompt":"a","n":1024,"max_tokens":16384,"ignore_eos":true}',
        work=True,
    ),
]
"""Bodies that are dear once they are parsed."""

BULK = [
    Kind("a line of 16 MB", _BULK, lambda: filled(b'{"input":"', b"a", b'"}\n'), work=True),
    Kind("a line without an end", _BULK, lambda: b"x" * (3 * MOST)),
    Kind("a line of empty lists", _BULK, lambda: repeated(b'{"input":[', b"[]", b"]}\n")),
    Kind("5,000,000 empty lines", _BULK, lambda: b"\n" * 5_000_000),
    Kind("lines of one byte", _BULK, lambda: b"1\n" * 50_000, work=True),
    Kind("lines of white space", _BULK, lambda: b" \t\r\n" * 2_000_000),
    Kind(
        "lines that ask for 20 alternatives",
        _BULK,
        lambda: b'{"input":"the cat sat on the mat","top_logprobs":20}\n' * 5000,
        work=True,
    ),
]
"""Bodies of lines."""

BODIES = [*MANY, *LONG, *TEXTS, *BULK]
WORST = [
    kind
    for kind in BODIES
    if kind.name
    in {
        "utterances",
        "empty lists",
        "unknown fields, ignored",
        "1,000,000 ids",
        "a string of 16 MB",
        "a line of empty lists",
    }
]
"""Those that stopped the server longest, for a short run."""


def framed() -> dict[str, Iterable[Part]]:
    """Bodies whose wrong or wasteful length is the harm."""
    head = "POST /v1/score HTTP/1.1\r\nHost: localhost\r\n"
    body = b'{"input": "a cat"}'
    lengths = {
        "a body shorter than its length": "1000",
        "a body longer than its length": "5",
        "a length of 10^18": "1" + "0" * 18,
        "a length of 10^30": "1" + "0" * 30,
        "a negative length": "-1",
        "a length with a sign": "+18",
        "a hexadecimal length": "0x12",
        "a length of two numbers": "18, 18",
        "an empty length": "",
    }
    cases: dict[str, Iterable[Part]] = {
        name: [f"{head}Content-Length: {length}\r\n\r\n".encode() + body]
        for name, length in lengths.items()
    }
    chunked = f"{head}Transfer-Encoding: chunked\r\n\r\n".encode()
    text = b'{"input": "%b"}' % (b"a " * 200_000)
    single = b"".join(b"1\r\n%c\r\n" % byte for byte in text)
    cases["chunks of one byte"] = [chunked, single, b"0\r\n\r\n"]
    cases["2,000,000 chunks of one byte"] = [chunked, b"1\r\na\r\n" * 2_000_000, b"0\r\n\r\n"]
    cases["no end of the chunks"] = [chunked, b"5\r\nhello\r\n"]
    cases["packets of one byte"] = [bytes([byte]) for byte in post("/v1/score", body * 100)]
    return cases
