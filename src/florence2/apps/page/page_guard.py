"""The guard of the review page: other web sites and other machines can neither read nor write through it.

A browser sends requests of any web site to the loopback, so the address alone protects nothing. A request must name a
loopback host (else a site may point its own name at this machine), must not come from another site, and a write must
have the token that only the page knows.
"""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from florence2.apps.serve.site_check import host_name, is_loopback_name

TOKEN_HEADER = "x-florence2-token"
MAX_BODY_BYTES = 64 * 2**20
_SAFE_METHODS = ("GET", "HEAD")


class PageGuard:
    """Wraps an application; `token` is the value that writes must have."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request of the page itself, and refuse every other with status 403."""
        if scope["type"] == "http" and (reason := self._refusal(scope["method"], Headers(scope=scope))):
            body = json.dumps({"error": reason, "hint": "open the address that `florence2 review` prints"}).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        await self._app(scope, receive, send)

    def _refusal(self, method: str, headers: Mapping[str, str]) -> str:
        """Return why a request is refused, or ""."""
        host = headers.get("host", "")
        if not is_loopback_name(host_name(host)):
            return "the request names another host than this machine's loopback"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return "the request comes from another web site"
        if method in _SAFE_METHODS:
            return ""
        origin = headers.get("origin")
        if origin is not None and origin != f"http://{host}":
            return "the request comes from another origin"
        if not hmac.compare_digest(headers.get(TOKEN_HEADER, "").encode(), self._token.encode()):
            return "the request lacks the token of the page"
        length = headers.get("content-length", "")
        is_limited = length.isdecimal() and int(length) <= MAX_BODY_BYTES
        return "" if is_limited else "the request does not say its size, or is too large"


def make_token() -> str:
    """Return a new token."""
    return secrets.token_urlsafe(32)
