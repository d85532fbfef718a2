"""Which hosts and web sites the requests of a server without a key may name.

A browser sends requests of any web page to the loopback, forms even without asking first, and a page may point its own
name at this machine (DNS rebinding), so the address of a server alone protects nothing. The headers do: a browser
writes `Host`, `Origin` and `Sec-Fetch-Site`, and a page cannot change them. A key, which no page knows, protects, too.
"""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from florence2.apps.serve.request_limits import RequestError
from florence2.errors import OptionError

ANY = "*"
_READING = ("GET", "HEAD", "OPTIONS")  # no other page can read their answers
_MAX_NAME = 100


@dataclass(frozen=True)
class SiteCheck:
    """The names under which a server is reached, and the origins of web pages that may use it; `*` is all."""

    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what no request can name."""
        for host in self.allowed_hosts:
            if not host_name(host) or host_name(host) != host.lower().removesuffix("."):
                raise OptionError(f"`--allowed_hosts {host}` is not a host", "pass a name such as florence.example.com")
        for origin in self.allowed_origins:
            if not is_origin(origin):
                raise OptionError(
                    f"`--allowed_origins {origin}` is not an origin", "pass one such as http://localhost:3000"
                )

    def require_allowed(self, method: str, headers: Headers, *, has_key: bool) -> None:
        """Raise a RequestError of status 403 for a request under another name or of another web site."""
        if (self.allowed_hosts or not has_key) and not self._is_host_allowed(headers.get("host")):
            name = _quote(host_name(headers["host"]))
            raise RequestError(
                f"the request names the host {name}, which is none of this server's",
                f"start the server with `--allowed_hosts {name}`, or with an API key",
                status=403,
            )
        if not self._is_site_allowed(method, headers, has_key=has_key):
            origin = _quote(headers.get("origin") or "")
            raise RequestError(
                f"the request comes from a web page of another origin, {origin}",
                f"start the server with `--allowed_origins {origin}`",
                status=403,
            )

    def _is_host_allowed(self, host: str | None) -> bool:
        """Return whether a `Host` is allowed; a browser sends one always, a load balancer may send none."""
        if host is None or ANY in self.allowed_hosts:
            return True
        name = host_name(host)
        return is_loopback_name(name) or name in map(host_name, self.allowed_hosts)

    def _is_site_allowed(self, method: str, headers: Headers, *, has_key: bool) -> bool:
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "")
        if origin in self.allowed_origins or ANY in self.allowed_origins:
            return True
        if method == "OPTIONS":  # a browser asks whether a page of an origin may send a request
            return "access-control-request-method" not in headers
        if method in _READING or has_key or site == "same-origin":
            return True
        if origin is None:
            return site in ("", "none")
        return origin.partition("://")[2].lower() == headers.get("host", "").lower()


def host_name(host: str) -> str:
    """Return the name of a `Host` header without its port, in lower case, or "" where it has none."""
    try:
        return (urlsplit(f"http://{host}").hostname or "").removesuffix(".")
    except ValueError:
        return ""


def is_loopback_name(name: str) -> bool:
    """Return whether a host name or address is the loopback wherever it is resolved."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def is_origin(text: str) -> bool:
    """Return whether a text has the form of an `Origin` header, or is `*`."""
    scheme, _, rest = text.partition("://")
    return text in (ANY, "null") or bool(scheme and rest and "/" not in rest and text == text.strip())


def _quote(name: str) -> str:
    """Return a name of a request as it may stand in a log."""
    return json.dumps(name)[1:-1][:_MAX_NAME] or "without a name"
