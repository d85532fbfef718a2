"""The run of a web application on a socket until a signal: it is announced once it accepts connections."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_UVICORN: dict[str, Any] = {"log_config": None, "log_level": "warning", "access_log": False, "ws": "none"}


def _do_nothing() -> None:
    pass


class WebServer(uvicorn.Server):
    """A uvicorn server that calls `on_start` once it accepts connections, and `on_end` once it does not any more.

    A signal is its regular end: open requests are answered. A second Ctrl-C cuts them.
    """

    def __init__(
        self, config: uvicorn.Config, on_start: Callable[[], None], on_end: Callable[[], None] = _do_nothing
    ) -> None:
        super().__init__(config)
        self._on_start, self._on_end = on_start, on_end

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while the server runs; uvicorn's own version raises them again afterwards."""
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on the sockets, then announce it."""
        await super().startup(sockets)
        if self.started:
            self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop to listen, and wait for the open requests."""
        self._on_end()
        await super().shutdown(sockets)


def make_web_server(
    app: Any, on_start: Callable[[], None], on_end: Callable[[], None] = _do_nothing, **options: Any
) -> WebServer:
    """Create the server of an application; `options` are further ones of `uvicorn.Config`."""
    return WebServer(uvicorn.Config(app, server_header=False, **_UVICORN, **options), on_start, on_end)


def address_of(listener: socket.socket) -> str:
    """Return the URL of a socket that is bound."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
