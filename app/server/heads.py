"""Rules of HTTP/1.1 for the head of a request which the parser leaves unchecked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import httptools

if TYPE_CHECKING:
    from collections.abc import Iterable

    Headers = list[tuple[bytes, bytes]]

HEAD_BYTES = 1 << 16
"""Bytes of a head, with the trailers and chunk extensions of the body.

Clients send less than 8 KiB. The parser joins a long header anew with every packet, so its time
grows with the square of the length: 50 MB in one header stopped the event loop for seconds.
"""
_CHECKED = frozenset((b"host", b"expect", b"transfer-encoding"))


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer to a request that the application does not get. code: for programs."""

    status: int
    message: str
    code: str
    headers: tuple[tuple[str, str], ...] = ()


TOO_LARGE = Refusal(
    431, f"headers and trailers: over the limit of {HEAD_BYTES} bytes", "headers_too_large"
)
URL_TOO_LONG = Refusal(414, f"URL: over the limit of {HEAD_BYTES} bytes", "url_too_long")


def invalid(reason: str) -> Refusal:
    """The answer to what is not HTTP/1.1."""
    return Refusal(400, f"not a valid HTTP request: {reason}", "invalid_http")


def objection(version: str, headers: Iterable[tuple[bytes, bytes]]) -> Refusal | None:
    """Why a request with this head is refused; None if it is not (RFC 9112, sections 3.2, 6.1)."""
    hosts = 0
    for name, value in headers:
        if name not in _CHECKED:
            continue
        if name == b"host":
            hosts += 1
        elif name == b"expect":
            if version == "1.1" and value.lower() != b"100-continue":
                return Refusal(417, "expect: only 100-continue is supported", "expectation_failed")
        elif value.lower() != b"chunked" or version != "1.1":
            return invalid("transfer-encoding: only chunked is supported, and not in HTTP/1.0")
    if hosts != 1 and (hosts > 1 or version == "1.1"):
        return invalid(f"host: must be given once, not {hosts} times")
    if version not in ("1.1", "1.0"):
        return invalid(f"HTTP/{version} is not supported")
    return None


def offers(parser: httptools.HttpRequestParser, headers: Headers) -> bool:
    """Whether a header of the request offers a protocol that is not supported."""
    if not parser.should_upgrade():
        return False
    # the parser treats every CONNECT as an upgrade
    return parser.get_method() != b"CONNECT" and any(name == b"upgrade" for name, _ in headers)


def to_origin_form(url: bytes, headers: Headers) -> bytes:
    """The path and query of an absolute URL, whose host replaces the one in the headers.

    Other URLs are returned as they are. Raises HttpParserError.
    """
    if b"://" not in url:
        return url
    parsed = httptools.parse_url(url)
    if parsed.schema not in (b"http", b"https"):
        raise httptools.HttpParserError("URL: only http and https are served")
    host = b"[%b]" % parsed.host if b":" in parsed.host else parsed.host
    host = host if parsed.port is None else b"%b:%d" % (host, parsed.port)
    if any(name == b"host" for name, _ in headers):  # without one the request is refused
        headers[:] = [(n, host if n == b"host" else value) for n, value in headers]
    path = parsed.path or b"/"
    return path if parsed.query is None else path + b"?" + parsed.query
