"""A real S3 server in a process of its own, and a proxy before it that breaks requests."""

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import pytest

HOST = "127.0.0.1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextmanager
def s3_server() -> Iterator[str]:
    """Start moto's server, and yield its address."""
    pytest.importorskip("moto.server")
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(port)
        yield f"http://{HOST}:{port}"
    finally:
        process.terminate()
        process.wait()


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            socket.create_connection((HOST, port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError(port)


def use_server(patch: pytest.MonkeyPatch, address: str) -> Any:
    """Let every S3 client of this process and its children use a server; return its file system."""
    s3fs = pytest.importorskip("s3fs")
    variables = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in variables.items():
        patch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    return s3fs.S3FileSystem()


def upload(filesystem: Any, folder: Path, address: str) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            filesystem.pipe_file(f"{address}/{path.relative_to(folder).as_posix()}", path.read_bytes())


class FaultyProxy:
    """Forwards requests to a server; of those that `breaks` selects by number, method and path, it breaks each once.

    The faults take turns: status 503 `SlowDown`, status 429, a connection that ends without an answer, and one that
    ends within the content.
    """

    FAULTS = ("503", "429", "reset", "cut")

    def __init__(self, server: str, breaks: Any) -> None:
        self.target = server.removeprefix("http://")
        self.breaks = breaks
        self.counts = dict.fromkeys(self.FAULTS, 0)
        self.num_requests = 0
        self.lock = Lock()
        self._server = ThreadingHTTPServer((HOST, 0), self._handler())
        self._server.daemon_threads = True
        self.address = f"http://{HOST}:{self._server.server_port}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def next_fault(self, method: str, path: str) -> str | None:
        with self.lock:
            self.num_requests += 1
            if not self.breaks(self.num_requests, method, path):
                return None
            fault = min(self.FAULTS, key=lambda name: self.counts[name])
            self.counts[fault] += 1
            return fault

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                body = self._read_body()
                fault = proxy.next_fault(self.command, self.path)
                if fault == "reset":
                    self._drop()
                elif fault in ("503", "429"):
                    code = b"<Error><Code>SlowDown</Code><Message>reduce your request rate</Message></Error>"
                    self._answer(int(fault), [("Content-Type", "application/xml")], code)
                else:
                    status, headers, content = self._ask(body)
                    self._answer(status, headers, content, is_cut=fault == "cut")

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

            def _read_body(self) -> bytes:
                if "chunked" in self.headers.get("Transfer-Encoding", ""):
                    chunks = []
                    while size := int(self.rfile.readline().split(b";")[0], 16):
                        chunks.append(self.rfile.read(size))
                        self.rfile.readline()
                    self.rfile.readline()
                    return b"".join(chunks)
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
                connection = http.client.HTTPConnection(proxy.target, timeout=60)
                headers = {k: v for k, v in self.headers.items() if k.lower() not in ("transfer-encoding", "expect")}
                headers["Content-Length"] = str(len(body))
                connection.request(self.command, self.path, body, headers)
                response = connection.getresponse()
                content = response.read()
                connection.close()
                return response.status, response.getheaders(), content

            def _answer(self, status: int, headers: Any, content: bytes, is_cut: bool = False) -> None:
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                        self.send_header(name, value)
                lengths = [value for name, value in headers if name.lower() == "content-length"]
                length = lengths[0] if self.command == "HEAD" and lengths else str(len(content))
                self.send_header("Content-Length", length)
                self.end_headers()
                if is_cut:
                    self.wfile.write(content[: len(content) // 2])
                    self._drop()
                elif self.command != "HEAD":
                    self.wfile.write(content)

            def _drop(self) -> None:
                """End the connection at once, with a reset."""
                self.wfile.flush()
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, **more}
