"""The guard of every request: its site, key, size, time and place in the queue, and its end when the client leaves.

ASGI middleware. A request's body is read before the application runs, so that a slow client takes no place in the
queue; then the application is cancelled as soon as the client disconnects or the time is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from florence2.apps.serve.model_service import ModelService
from florence2.apps.serve.request_limits import RequestError, busy
from florence2.apps.serve.site_check import SiteCheck

logger = logging.getLogger("florence2")
CLIENT_LEFT = 499
MAX_BUFFERED_REQUESTS = 16  # of the maximum size: what all bodies together may take of memory
OPEN_PATHS = ("/", "/health", "/docs", "/openapi.json")  # answered without a key, as load balancers and readers ask
OPEN_FILES = "/page/static/"  # the page that asks for the key
_DISCARD_SECONDS = 1.0
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class ClientLeft(Exception):  # noqa: N818 - an event, not an error
    """The client has closed the connection."""


class RequestGuard:
    """Wraps an application; `api_key` None lets every client in."""

    def __init__(self, app: ASGIApp, service: ModelService, sites: SiteCheck, api_key: str | None = None) -> None:
        self._app, self._service, self._sites, self._api_key = app, service, sites, api_key
        self._num_bytes = 0  # of the bodies of all requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; other events pass."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, send)
        try:
            await self._answer(exchange, receive)
        except RequestError as error:
            if not exchange.is_read and error.status != 408 and not exchange.header("expect"):
                await _discard_body(receive)
            await exchange.send_error(error)
            if error.status == 403:  # a browser hides the reason from a page of another origin
                exchange.note = f", {error.message}"
        except ClientLeft:
            exchange.status = CLIENT_LEFT
        except Exception:
            logger.exception(f"{exchange.id} failed")
            await exchange.send_error(RequestError("the server failed", "see its log", status=500))
        finally:
            self._num_bytes -= exchange.num_bytes
            seconds = time.perf_counter() - exchange.start
            self._service.metrics.count_request(exchange.route, exchange.status, seconds)
            logger.info(f"{exchange.id} {exchange.line} {exchange.status} {1000 * seconds:.0f} ms{exchange.note}")

    async def _answer(self, exchange: _Exchange, receive: Receive) -> None:
        scope, limits = exchange.scope, self._service.limits
        self._sites.require_allowed(scope["method"], Headers(scope=scope), has_key=self._api_key is not None)
        is_open = scope["path"] in OPEN_PATHS or scope["path"].startswith(OPEN_FILES)
        if not is_open and not self._has_key(exchange.header("authorization")):
            raise RequestError("the API key is missing or wrong", "send `Authorization: Bearer KEY`", status=401)
        is_work = scope["method"] == "POST"
        if is_work:
            self._service.require_room()
            require_plain(exchange.header("content-encoding"))
        try:
            async with asyncio.timeout(limits.request_timeout):
                body = await self._read_body(exchange, receive)
                exchange.is_read = True
        except TimeoutError:
            raise RequestError("the request was not received in time", status=408) from None
        if is_work:
            assume_json(scope)
        with self._service.admit() if is_work else contextlib.nullcontext():
            await self._run(exchange, body, receive)

    async def _read_body(self, exchange: _Exchange, receive: Receive) -> bytes:
        """Read the body of a request; raise a RequestError where it, or all bodies together, are too large."""
        most = self._service.limits.max_request_bytes
        too_large = RequestError(f"the request has more than {most:,} bytes", "send smaller images", status=413)
        length = exchange.header("content-length")
        if length.isdigit() and int(length) > most:
            raise too_large
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            chunk = message.get("body", b"")
            body += chunk
            exchange.num_bytes += len(chunk)
            self._num_bytes += len(chunk)
            if len(body) > most:
                raise too_large
            if self._num_bytes > MAX_BUFFERED_REQUESTS * most:
                raise busy("the requests in work take too much memory")
            if not message.get("more_body", False):
                return bytes(body)

    def _has_key(self, authorization: str) -> bool:
        if self._api_key is None:
            return True
        key = authorization[7:] if authorization[:7].lower() == "bearer " else authorization
        return hmac.compare_digest(key.strip().encode(), self._api_key.encode())

    async def _run(self, exchange: _Exchange, body: bytes, receive: Receive) -> None:
        """Run the application on a request that has arrived, until it is done, or the client or the time is."""
        left = asyncio.Event()
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            if messages:
                return messages.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        answer = asyncio.ensure_future(self._app(exchange.scope, replay, exchange.send))
        watcher = asyncio.ensure_future(_wait_for_disconnect(receive))
        timeout = self._service.limits.request_timeout
        try:
            await asyncio.wait((answer, watcher), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done() and not exchange.is_complete:
                left.set()
                answer.cancel()
                await asyncio.wait((answer,))
                if watcher.done():
                    raise ClientLeft
                raise RequestError(f"the request was not done within {timeout:g} seconds", "send less", status=504)
            await answer
        finally:
            for task in (answer, watcher):
                task.cancel()


class _Exchange:
    """One request and its response: the id is added to the headers, the status is remembered."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope, self._send = normalize(scope), send
        self.line = f"{scope['method']} {json.dumps(scope['path'])[1:-1][:100]}"  # without what follows the path
        self.start = time.perf_counter()
        self.status = 0
        self.is_read = False
        self.is_complete = False
        self.num_bytes = 0  # of the body, as far as it was read
        self.note = ""  # which model ran which task
        own = self.header("x-request-id")
        self.id = own if _REQUEST_ID.fullmatch(own) else uuid.uuid4().hex[:16]
        self.scope.setdefault("state", {})["request_id"] = self.id

    def header(self, name: str) -> str:
        return header_of(self.scope["headers"], name)

    @property
    def route(self) -> str:
        """Return the path of the route: few values, whatever clients send."""
        return str(getattr(self.scope.get("route"), "path", "other"))

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            noted = [
                header_of(message.get("headers", []), f"x-florence2-{name}") for name in ("model", "task", "task-rule")
            ]
            self.note = ", model {}, task {} ({})".format(*noted) if noted[0] else ""
            message = {**message, "headers": [*message.get("headers", []), (b"x-request-id", self.id.encode())]}
        self.is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)

    async def send_error(self, error: RequestError) -> None:
        """Send an error; a response that has begun can only be cut."""
        if self.status:
            return
        body = json.dumps(error_body(self.scope["path"], error)).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
        if not self.is_read:  # the rest of the body is not read
            headers["connection"] = "close"
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": error.status, "headers": pairs})
        await self.send({"type": "http.response.body", "body": body})


def error_body(path: str, error: RequestError) -> dict[str, Any]:
    """Return the JSON of an error: a string for Ollama's routes, else an object as OpenAI sends it."""
    if path.startswith("/api/"):
        return {"error": error.message}
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    return {"error": {"message": error.message, "type": kind, "param": None, "code": error.status}}


def header_of(headers: Sequence[tuple[bytes, bytes]], name: str) -> str:
    """Return the first header of a name, or ""."""
    return next((value.decode("latin-1") for key, value in headers if key.lower() == name.encode()), "")


def normalize(scope: Scope) -> Scope:
    """Return a request as the routes know it: without doubled or final slashes, and HEAD as GET.

    Base URLs that end in a slash make such paths. The web server sends no body to HEAD, whatever the route answers.
    """
    path = re.sub("/{2,}", "/", scope["path"])
    path = path.rstrip("/") or "/"
    return {**scope, "path": path, "method": "GET" if scope["method"] == "HEAD" else scope["method"]}


def require_plain(encoding: str) -> None:
    """Raise a RequestError for a compressed body: it may become any number of bytes."""
    if encoding.strip().lower() not in ("", "identity"):
        raise RequestError("the body is compressed", "send it without `Content-Encoding`", status=415)


def assume_json(scope: Scope) -> None:
    """Take a body that is not a multipart form as JSON, whatever type its client names: `curl -d` names another one."""
    headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"content-type"]
    if not header_of(scope["headers"], "content-type").lower().startswith("multipart/"):
        scope["headers"] = [*headers, (b"content-type", b"application/json")]


async def _discard_body(receive: Receive) -> None:
    """Read what the client of a refused request still sends, for a short time.

    A connection that is closed with unread bytes is reset, and the client may lose the answer.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_SECONDS):
            while (await receive()).get("more_body", False):
                pass


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
