"""Fetching of images from hosts that the operator allows, and from no others.

Each redirect is checked like the first address: its host must be allowed, and its address must be public, unless it is
the host of the first address. The address that is checked is the one that is connected to.
"""

from __future__ import annotations

import http.client
import ipaddress
import time
from collections.abc import Collection
from urllib.parse import SplitResult, urljoin, urlsplit

from florence2.apps.serve.request_limits import RequestError

MAX_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK_BYTES = 2**16


def fetch_image(url: str, media_domains: Collection[str], *, max_bytes: int, timeout: float) -> bytes:
    """Return the bytes at a URL; raise a RequestError for a host that is not allowed and for every failure."""
    deadline = time.monotonic() + timeout
    first_host = _split(url).hostname
    for _ in range(MAX_REDIRECTS + 1):
        parts = _split(url)
        host = parts.hostname or ""
        if host not in media_domains:
            raise RequestError(
                f"images are not fetched from `{host}`",
                "send the image as a data URI, or start with `--allowed_media_domains`",
            )
        try:
            found = _get(parts, deadline, max_bytes, allows_private=host == first_host)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise RequestError(f"the image at `{host}` cannot be fetched: {type(error).__name__}") from None
        if isinstance(found, bytes):
            return found
        url = urljoin(url, found)
    raise RequestError(f"the image at `{first_host}` is redirected more than {MAX_REDIRECTS} times")


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise RequestError("the URL of an image is not valid") from None
    if parts.scheme not in ("http", "https"):
        raise RequestError(f"`{parts.scheme}` URLs are not fetched", "send an https URL or a data URI")
    return parts


def _get(parts: SplitResult, deadline: float, max_bytes: int, *, allows_private: bool) -> bytes | str:
    """Request one URL, and return its content or the target of its redirect."""
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=max(deadline - time.monotonic(), 0.01))
    try:
        connection.connect()
        if not allows_private and not ipaddress.ip_address(connection.sock.getpeername()[0]).is_global:
            raise RequestError(f"a redirect leads to the private address of `{parts.hostname}`")
        path = parts.path or "/"
        connection.request("GET", f"{path}?{parts.query}" if parts.query else path, headers={"Accept": "image/*"})
        response = connection.getresponse()
        if response.status in _REDIRECTS:
            return response.getheader("Location") or ""
        if response.status != 200:
            raise RequestError(f"the image at `{parts.hostname}` cannot be fetched: status {response.status}")
        return _read(response, deadline, max_bytes)
    finally:
        connection.close()


def _read(response: http.client.HTTPResponse, deadline: float, max_bytes: int) -> bytes:
    data = bytearray()
    while chunk := response.read1(_CHUNK_BYTES):
        data += chunk
        if len(data) > max_bytes:
            raise RequestError(f"the image at the URL has more than {max_bytes:,} bytes", status=413)
        if time.monotonic() > deadline:
            raise RequestError("the image at the URL takes too long")
    return bytes(data)
