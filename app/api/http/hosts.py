"""Refuses requests to names that are not the server's, and from web pages of other origins.

A web page that a user of this machine visits can send requests to a server that listens only here.
Browsers hide the answers from pages of other origins, but work would be done; and with a name that
first leads to the page's host and then to this one (DNS rebinding) they would show them.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
from collections.abc import Iterable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.http.errors import error_body
from app.settings import Settings

_log = logging.getLogger(__name__)

_HEALTH = frozenset({"/livez", "/readyz", "/health", "/ping"})
"""Orchestrators call these paths by the address of a container, which changes. Their answers say
nothing but whether the server is ready."""
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]@/\s]+)(?::(\d{0,5}))?")
_EXTENSION = re.compile(rb"[a-z]+(?:-[a-z]+)*-extension://")
"""Origins of browser extensions. No web page can send them, and users install extensions."""
_PORTS = {"http": "80", "https": "443"}
_MOST_REMEMBERED, _LONGEST_REMEMBERED = 1000, 255
"""Values of Host, and bytes of one: the longest name in DNS."""
_MOST_LOGGED = 100
"""Names in the log: a client that sends a new name each time must not fill the log."""


class AllowedHosts:
    """The names that the server answers to. Addresses are compared as addresses.

    names: each may begin with `*.` for all names that end so; `*` allows any. `localhost` and the
    loopback addresses are always among them: they lead each client to its own machine, so no other
    host can have them.
    """

    def __init__(self, names: Iterable[str]) -> None:
        named = [_name(name) or _plain(name.lower()) for name in names]  # `::1` without brackets
        self._any = "*" in named
        self._names = frozenset(named)
        self._endings = tuple(name[1:] for name in named if name.startswith("*."))
        self._known: set[bytes] = set()

    @classmethod
    def of(cls, settings: Settings) -> AllowedHosts:
        """Those of the setting, else any name if the server listens on all addresses, else the
        address that it listens on."""
        if settings.allowed_names:
            return cls(settings.allowed_names)
        listens_on = _numeric(settings.host)
        address = _address(listens_on)
        if address is not None and address.is_unspecified:
            return cls(["*"])
        return cls([listens_on])

    def allow(self, host: bytes) -> bool:
        """Whether the value of a Host header, with or without a port, is one of the names."""
        if host in self._known or self._any:
            return True
        name = _name(host.decode("latin-1"))
        if name is None or not self._is_one(name):
            return False
        if len(self._known) < _MOST_REMEMBERED and len(host) <= _LONGEST_REMEMBERED:
            self._known.add(host)
        return True

    def _is_one(self, name: str) -> bool:
        if name == "localhost" or name in self._names or name.endswith(self._endings):
            return True
        address = _address(name)
        return address is not None and address.is_loopback


class HostsAndOrigins:
    """ASGI middleware: answers 421 to a Host, and 403 to an Origin, that is not allowed.

    origins: allowed besides the server's own, which the Host header names; `*` allows any.
    """

    def __init__(self, app: ASGIApp, hosts: AllowedHosts, origins: Iterable[str]) -> None:
        self._app, self._hosts = app, hosts
        self._origins = frozenset(origin.encode() for origin in origins)
        self._logged: set[tuple[str, bytes]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = origin = b""
            for name, value in scope["headers"]:
                if name == b"host":
                    host = value
                elif name == b"origin":
                    origin = value
            # browsers send a Host header; HTTP/1.0 clients may not
            if host and not self._hosts.allow(host) and scope["path"] not in _HEALTH:
                await self._refuse_host(host)(scope, receive, send)
                return
            if origin and not self._allow(origin, host):
                await self._refuse_origin(origin)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _allow(self, origin: bytes, host: bytes) -> bool:
        if origin in self._origins or b"*" in self._origins or _EXTENSION.match(origin):
            return True
        scheme, _, authority = origin.decode("latin-1").lower().partition("://")
        if scheme not in _PORTS:  # "null" too: of pages in files and sandboxes, of any host
            return False
        # the scheme is not compared: a proxy may have ended TLS
        if authority.encode("latin-1") == host:
            return True
        return _with_port(authority, scheme) == _with_port(host.decode("latin-1"), scheme)

    def _refuse_host(self, host: bytes) -> JSONResponse:
        self._report("host", host, "CONVLM_ALLOWED_HOSTS names the hosts that are")
        message = (
            f"host: this server does not answer to the name {host.decode('latin-1')!r}, only to "
            "those in its setting allowed_hosts"
        )
        return _error(421, message, "host")

    def _refuse_origin(self, origin: bytes) -> JSONResponse:
        self._report("origin", origin, "CONVLM_CORS_ORIGINS names the origins that are")
        message = (
            f"origin: pages of {origin.decode('latin-1')!r} may not ask this server, only those in "
            "its setting cors_origins"
        )
        return _error(403, message, "origin")

    def _report(self, kind: str, value: bytes, advice: str) -> None:
        """Logs a name that is refused, the first time."""
        shown = value[:100]
        if (kind, shown) in self._logged or len(self._logged) >= _MOST_LOGGED:
            return
        self._logged.add((kind, shown))
        _log.warning("%s not allowed name=%r; %s", kind, shown.decode("latin-1"), advice)
        if len(self._logged) == _MOST_LOGGED:
            _log.warning("further names that are not allowed are not logged")


def _error(status: int, message: str, header: str) -> JSONResponse:
    code = f"{header}_not_allowed"
    return JSONResponse(error_body(message, "invalid_request_error", header, code), status)


def _name(authority: str) -> str | None:
    """The host of an authority in its plain form, without the port; None if it has none."""
    match = _AUTHORITY.fullmatch(authority.strip().lower())
    return None if match is None else _plain(match[1])


def _plain(name: str) -> str:
    """A name in lower case without the dot at its end; an address in its shortest form."""
    address = _address(name.strip("[]"))
    return name.removesuffix(".") if address is None else str(address)


def _numeric(host: str) -> str:
    """The address that a setting such as `0` stands for; a name as it is."""
    try:
        found = socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
    except OSError:
        return host
    return str(found[0][4][0]).partition("%")[0]  # without the name of an interface


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _with_port(authority: str, scheme: str) -> tuple[str, str] | None:
    """Host and port of an authority; None if it has none."""
    match = _AUTHORITY.fullmatch(authority.strip().lower())
    return None if match is None else (_plain(match[1]), match[2] or _PORTS[scheme])
