"""uvicorn's HTTP/1.1, without the loss of bodies."""

from __future__ import annotations

import sys

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Http1(HttpToolsProtocol):
    """Takes a request that offers another protocol for one that does not.

    Java's HttpClient offers HTTP/2 (`Upgrade: h2c`) with the first request of each connection. A
    server may ignore that (RFC 9110, section 7.8), but the parser takes such a request for one
    without a body and stops behind its head, and uvicorn drops the rest. So the parser gets the
    request again, without the offer.
    """

    _parsed = _again = b""

    def data_received(self, data: bytes) -> None:
        while data:
            self._parsed, self._again = data, b""
            super().data_received(data)
            data = self._again

    def on_headers_complete(self) -> None:
        if not self._offers():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self._offers():
            super().on_message_complete()

    def _offers(self) -> bool:
        """Whether the request offers a protocol that is not spoken here, in a header."""
        if not self.parser.should_upgrade() or self._should_upgrade():
            return False
        # the parser takes every CONNECT for an upgrade
        asked = self.parser.get_method() != b"CONNECT"
        return asked and any(name == b"upgrade" for name, _ in self.headers)

    def _unsupported_upgrade_warning(self) -> None:
        """Called where the parser has stopped, with its exception being handled."""
        if not self._offers():
            super()._unsupported_upgrade_warning()
            return
        stopped = sys.exception()
        assert isinstance(stopped, httptools.HttpParserUpgrade)
        behind = self._parsed[stopped.args[0] :]
        head = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self._version)]
        head += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._again = b"\r\n".join([*head, b"", b""]) + behind

    @property
    def _version(self) -> bytes:
        version: str = self.parser.get_http_version()
        return version.encode()
