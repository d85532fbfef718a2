"""The command `florence2 review`: serve the review page of a dataset on the loopback until a signal comes."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from importlib import import_module
from typing import Any

from florence2.config import ReviewSettings
from florence2.errors import MissingPackageError, OptionError
from florence2.log import count_noun, logger

_PACKAGES = ("fastapi", "uvicorn")
_HOST = "127.0.0.1"


def main(settings: ReviewSettings) -> int:
    """Run `florence2 review`; return 0 after a signal has ended it."""
    for package in _PACKAGES:
        try:
            import_module(package)
        except ImportError as error:
            raise MissingPackageError(
                f"`florence2 review` needs `{package}`", "run `pip install 'florence2[serve]'`"
            ) from error
    from florence2 import EditableDataset
    from florence2.apps.page.review_session import ReviewSession

    def open_dataset() -> EditableDataset:
        return EditableDataset(
            settings.dataset,
            task=settings.task,
            recursive=settings.recursive,
            caption_extension=settings.caption_extension,
        )

    with _bind(settings.port) as listener:
        session = ReviewSession(open_dataset)
        ask_row = load_model(settings) if settings.model_path else None
        _serve(session, ask_row, listener)
    return 0


def _serve(session: Any, ask_row: Callable[[Any], dict[str, Any]] | None, listener: socket.socket) -> None:
    from florence2.apps.page.review_app import create_review_app
    from florence2.apps.serve.web_server import address_of, make_web_server

    if session.note:
        logger.warning(session.note)
    rows = f"{count_noun(session.num_rows, 'row')} of {session.name}"

    def log_start() -> None:
        logger.info(f"{rows} at {address_of(listener)} ; changes are written at once")

    app = create_review_app(session, ask_row)
    make_web_server(app, log_start, timeout_graceful_shutdown=5).run(sockets=[listener])
    logger.info("the review has ended")


def load_model(settings: ReviewSettings) -> Callable[[Any], dict[str, Any]]:
    """Load the model, and return a function that predicts a row again."""
    import threading

    from florence2 import EditableRow, Engine, EngineConfig, GenerationConfig, ModelSource, Sample

    assert settings.model_path
    source = ModelSource.resolve(settings.model_path, settings.hub, settings.compute.dtype)
    engine = Engine(*source.load(settings.compute.device), EngineConfig(GenerationConfig()))
    lock = threading.Lock()

    def ask_row(row: EditableRow) -> dict[str, Any]:
        with lock:
            [prediction] = engine.run([Sample(row.file_name, row.image or b"", row.task.token, row.input)])
        return row.proposal(prediction.text, prediction.answer, prediction.error or "")

    return ask_row


def _bind(port: int) -> socket.socket:
    """Bind the port before anything is read, so that a port in use is an error at once."""
    try:
        return socket.create_server((_HOST, port))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OptionError(f"cannot listen on {_HOST}:{port}: {reason}", "pass another `--port`") from None
