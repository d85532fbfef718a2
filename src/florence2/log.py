"""The logger of the package, and the handler that prints its messages on the command line.

Every message goes to the logger `florence2`, from the main process only. Libraries stay silent by default: a Python
program sees the messages once it configures logging at level `INFO`. stdout is left to data.
"""

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType

from florence2.distributed import is_main_process

logger = logging.getLogger("florence2")


def count_noun(number: int, noun: str) -> str:
    """Write a number with its noun, in the plural where it is not one: `1 image`, `2,000 images`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _is_from_main_process(_: logging.LogRecord) -> bool:
    return is_main_process()


logger.addFilter(_is_from_main_process)


class _StderrHandler(logging.Handler):
    """Write messages as plain lines to what `sys.stderr` is now: above a progress bar, where one is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{self.format(record)}\n")


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """Print the messages of the package to stderr; the command line runs inside it."""
    handler, level, propagate = _StderrHandler(), logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def progress_console() -> Console:
    """Return the console of a progress bar: a terminal only where stderr is one and the messages are switched on."""
    return Console(stderr=True, force_terminal=None if logger.isEnabledFor(logging.INFO) else False)


def render_text(*renderables: RenderableType) -> str:
    """Render tables of `rich` as plain text, as wide as stderr."""
    text = io.StringIO()
    Console(file=text, width=Console(stderr=True).width, soft_wrap=True).print(*renderables)
    return text.getvalue().rstrip("\n")
