"""Bodies that are dear to read, to parse, to refuse or to tokenise, up to the limit of 16 MiB."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass

from tests.bench.hostile.wire import post

MOST = 16 << 20
_SCORE, _NEXT, _RESCORE = "/v1/score", "/v1/next", "/v1/rescore"
_COMPLETIONS = "/v1/completions"


@dataclass(frozen=True, slots=True)
class Kind:
    """A hostile body. work: it is legal and dear, so its client leaves before the answer."""

    name: str
    path: str
    make: Callable[[], bytes]
    work: bool = False

    def request(self) -> bytes:
        """The whole request."""
        return post(self.path, self.make())


def repeated(before: bytes, part: bytes, after: bytes, most: int = MOST) -> bytes:
    """As many parts, with commas between them, as fit into a body."""
    count = (most - len(before) - len(after)) // (len(part) + 1)
    return before + b",".join(itertools.repeat(part, count)) + after


def counted(before: bytes, part: bytes, after: bytes, count: int) -> bytes:
    return before + b",".join(itertools.repeat(part, count)) + after


def filled(before: bytes, unit: bytes, after: bytes, most: int = MOST) -> bytes:
    """One value of as many units as fit."""
    return before + unit * ((most - len(before) - len(after)) // len(unit)) + after


def numbered(before: bytes, part: str, after: bytes, count: int) -> bytes:
    """Different parts: `part` is formatted with 0, 1 and so on."""
    return before + ",".join(map(part.format, range(count))).encode() + after


MANY = [
    Kind(
        "utterances",
        _RESCORE,
        lambda: counted(b'{"utterances":[', b'{"hypotheses":["a b"],"context":""}', b"]}", 350_000),
    ),
    Kind("empty utterances", _RESCORE, lambda: repeated(b'{"utterances":[', b"{}", b"]}")),
    Kind("empty lists", _SCORE, lambda: counted(b'{"input":[', b"[]", b"]}", 3_000_000)),
    Kind(
        "empty lists of hypotheses",
        _RESCORE,
        lambda: repeated(b'{"utterances":[', b'{"hypotheses":[]}', b"]}"),
    ),
    Kind("nulls", _SCORE, lambda: repeated(b'{"input":[', b"null", b"]}")),
    Kind("texts and ids mixed", _SCORE, lambda: repeated(b'{"input":[', b'"a",1', b"]}")),
    Kind("empty texts", _SCORE, lambda: repeated(b'{"input":[', b'""', b"]}")),
    Kind(
        "1,000,000 ids", _SCORE, lambda: counted(b'{"input":[', b"5", b"]}", 1_000_000), work=True
    ),
    Kind("8,000,000 ids", _SCORE, lambda: repeated(b'{"input":[', b"5", b"]}")),
    Kind("fractions for ids", _SCORE, lambda: repeated(b'{"input":[', b"1.5", b"]}")),
    Kind(
        "NaN and Infinity",
        _SCORE,
        lambda: repeated(b'{"input":[', b"NaN,Infinity,-Infinity", b"]}"),
    ),
    Kind(
        "unknown fields, ignored",
        _COMPLETIONS,
        lambda: numbered(b'{"prompt":"a","max_tokens":1,', '"x{}":0', b"}", 1_300_000),
    ),
    Kind(
        "unknown fields, refused",
        _SCORE,
        lambda: numbered(b'{"input":"a",', '"x{}":0', b"}", 1_300_000),
    ),
    Kind(
        "unknown fields of utterances",
        _RESCORE,
        lambda: repeated(b'{"utterances":[', b'{"hypotheses":["a"],"x":{},"y":[]}', b"]}"),
    ),
    Kind("one field again and again", _SCORE, lambda: repeated(b"{", b'"input":"a"', b"}")),
    Kind(
        "logit_bias",
        _COMPLETIONS,
        lambda: numbered(
            b'{"prompt":"a","max_tokens":1,"logit_bias":{', '"{}":1', b"}}", 1_000_000
        ),
    ),
    Kind("stop strings", _COMPLETIONS, lambda: repeated(b'{"prompt":"a","stop":[', b'"b"', b"]}")),
    Kind(
        "allowed ids",
        _COMPLETIONS,
        lambda: repeated(b'{"prompt":"a","max_tokens":1,"allowed_token_ids":[', b"7", b"]}"),
    ),
    Kind("prompts", _COMPLETIONS, lambda: repeated(b'{"prompt":[', b'"a"', b"]}")),
    Kind(
        "16,384 hypotheses",
        _RESCORE,
        lambda: counted(
            b'{"utterances":[{"hypotheses":[', b'{"text":"a cat","prior":1}', b"]}]}", 16_384
        ),
        work=True,
    ),
    Kind(
        "16,384 utterances",
        _RESCORE,
        lambda: counted(b'{"utterances":[', b'{"hypotheses":["a cat"]}', b"]}", 16_384),
        work=True,
    ),
    Kind(
        "1,024 texts, 20 alternatives",
        _SCORE,
        lambda: counted(b'{"top_logprobs":20,"input":[', b'"the cat sat on the mat"', b"]}", 1024),
        work=True,
    ),
    Kind(
        "1,024 candidates after a long text",
        _NEXT,
        lambda: json.dumps(
            {"input": "a cat " * 50_000, "candidates": [f" {n}" for n in range(1024)]}
        ).encode(),
        work=True,
    ),
    Kind("candidates", _NEXT, lambda: repeated(b'{"input":"a","candidates":[', b'"b"', b"]}")),
]
"""Bodies of many values."""

LONG = [
    Kind(
        "lists 100,000 deep", _SCORE, lambda: b'{"input":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    ),
    Kind(
        "objects 100,000 deep",
        _COMPLETIONS,
        lambda: b'{"prompt":"a","x":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    ),
    Kind("16 MB of opening brackets", _SCORE, lambda: filled(b'{"input":', b"[", b"")),
    Kind("a string of 16 MB", _SCORE, lambda: filled(b'{"input":"', b"a", b'"}')),
    Kind("a string of escapes", _SCORE, lambda: filled(b'{"input":"', rb"\u0000", b'"}')),
    Kind("a string of quotes", _SCORE, lambda: filled(b'{"input":"', rb"\"", b'"}')),
    Kind("a string of backslashes", _COMPLETIONS, lambda: filled(b'{"prompt":"', b"\\\\", b'"}')),
    Kind("digits", _COMPLETIONS, lambda: filled(b'{"prompt":"a","max_tokens":', b"9", b"}")),
    Kind(
        "digits of a fraction",
        _COMPLETIONS,
        lambda: filled(b'{"prompt":"a","temperature":0.', b"1", b"}"),
    ),
    Kind(
        "digits of an exponent",
        _COMPLETIONS,
        lambda: filled(b'{"prompt":"a","temperature":1e', b"9", b"}"),
    ),
    Kind(
        "digits of an ignored field",
        _COMPLETIONS,
        lambda: filled(b'{"prompt":"a","max_tokens":1,"x":', b"9", b"}"),
    ),
    Kind(
        "a wrong value of 16 MB",
        _COMPLETIONS,
        lambda: filled(b'{"prompt":"a","max_tokens":"', b"x", b'"}'),
    ),
    Kind("a field's name of 16 MB", _SCORE, lambda: filled(b'{"input":"a","', b"x", b'":1}')),
    Kind("a model's name of 16 MB", _SCORE, lambda: filled(b'{"input":"a","model":"', b"x", b'"}')),
    Kind("white space before", _SCORE, lambda: filled(b"", b" ", b'{"input":"a"}')),
    Kind("white space within", _SCORE, lambda: filled(b'{"input":', b"\n", b'"a"}')),
    Kind("white space alone", _SCORE, lambda: filled(b"", b"\t", b"")),
    Kind("invalid UTF-8", _SCORE, lambda: filled(b'{"input":"', b"\xff", b'"}')),
    Kind("invalid UTF-8 at the end", _SCORE, lambda: filled(b'{"input":"', b"a", b'\xc3"}')),
    Kind("lone surrogates", _SCORE, lambda: filled(b'{"input":"', rb"\ud800", b'"}')),
    Kind("surrogates as bytes", _SCORE, lambda: filled(b'{"input":"', b"\xed\xa0\x80", b'"}')),
    Kind("a byte order mark", _SCORE, lambda: b'\xef\xbb\xbf{"input":"a"}'),
    Kind("UTF-16", _SCORE, lambda: filled(b"", '{"input":"a"}'.encode("utf-16"), b"")),
    Kind("bytes of zero", _SCORE, lambda: bytes(MOST)),
    Kind("a byte too many", _SCORE, lambda: filled(b'{"input":"', b"a", b'"} ', MOST + 1)),
    Kind("no JSON", _SCORE, lambda: filled(b"", b"hello ", b"")),
]
"""Bodies of a few values, or of none."""
