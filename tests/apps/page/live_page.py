"""The pages in a real browser: a server of the review in a thread of the test process, and headless Chromium."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from florence2 import EditableDataset
from florence2.apps.page.review_app import create_review_app
from florence2.apps.page.review_session import ReviewSession

TOKEN = "the token of the tests"


@contextmanager
def serve_app(app) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, log_level="warning", access_log=False, ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()


@contextmanager
def serve_review(path: Path, **options) -> Iterator[str]:
    app = create_review_app(ReviewSession(lambda: EditableDataset(path)), token=TOKEN, **options)
    with serve_app(app) as url:
        yield url


def read_table(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def wait_until(page, expression: str, seconds: float = 8) -> None:
    """Wait until an expression of JavaScript holds; the page's own policy forbids Playwright's `wait_for_function`."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        time.sleep(0.02)


def wait_for_rows(path: Path, is_done, seconds: float = 5) -> list[dict]:
    """Wait until the rows of a table are as expected, and return them."""
    end = time.monotonic() + seconds
    while not is_done(rows := read_table(path)):
        assert time.monotonic() < end, rows
        time.sleep(0.02)
    return rows
