"""The logger of the package, and the handler that prints its messages on the command line.

Every message goes to the logger `florence2`, from the main process only. Libraries stay silent by default: a Python
program sees the messages once it configures logging at level `INFO`. stdout is left to data.
"""

import io
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from florence2.distributed import is_main_process
from florence2.errors import to_line

if TYPE_CHECKING:  # its import takes as long as the rest of `--help`
    from rich.console import Console, RenderableType

logger = logging.getLogger("florence2")
_LONG_INTERVAL = 60.0
_NOTEBOOK_COLUMNS = 100


def count_noun(number: int, noun: str) -> str:
    """Write a number with its noun, in the plural where it is not one: `1 image`, `2,000 images`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def note_files(files: Sequence[tuple[str, str]]) -> str:
    """Count files by kind and name the first."""
    return f"{count_kinds(kind for _, kind in files)}; the first is {files[0][0]}"


def name_columns(counts: Mapping[str, int]) -> str:
    """Name columns with the number of rows that have them."""
    return ", ".join(f"`{name}` of {count_noun(number, 'row')}" for name, number in sorted(counts.items()))


def count_kinds(kinds: Iterable[str]) -> str:
    """Write how often each kind occurs, the most frequent first: `3 points, 1 polyline`."""
    return ", ".join(f"{number:,} {kind}" for kind, number in Counter(kinds).most_common())


def _is_from_main_process(_: logging.LogRecord) -> bool:
    return is_main_process()


logger.addFilter(_is_from_main_process)


class _StderrHandler(logging.Handler):
    """Write each message as one plain line to what `sys.stderr` is now: above a progress bar, where one is drawn.

    Messages contain names and texts of files that anybody may have made, so that what controls a terminal is escaped.
    """

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{to_line(self.format(record))}\n")


def log_lines(lines: Iterable[str]) -> None:
    """Log lines that belong together, each as a message."""
    for line in lines:
        logger.info(line)


def print_lines(lines: Iterable[str]) -> None:
    """Print lines of a report to stdout; what controls a terminal is escaped."""
    sys.stdout.writelines(f"{to_line(line)}\n" for line in lines)


@contextmanager
def log_to_stderr(lowest: int = logging.INFO) -> Iterator[None]:
    """Print the messages of the package to stderr, from a level on; the command line runs inside it."""
    handler, level, propagate = _StderrHandler(), logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(lowest)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def progress_console() -> "Console":
    """Return the console of a progress bar: a terminal where stderr is one and the messages are switched on.

    A notebook shows the bar, too, in one line that is written again, unless the messages are switched off.
    """
    from rich.console import Console

    if is_in_notebook():
        is_silent = logger.level > logging.INFO
        environment = {"TERM": "xterm", "COLUMNS": str(_NOTEBOOK_COLUMNS)}
        return Console(stderr=True, force_terminal=not is_silent, force_jupyter=False, _environ=environment)
    return Console(stderr=True, force_terminal=None if logger.isEnabledFor(logging.INFO) else False)


def is_in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


def line_interval(seconds: float, first: float) -> float:
    """Return the time between two lines of progress after so many seconds: from the first minute on, a minute."""
    return first if seconds < _LONG_INTERVAL else _LONG_INTERVAL


class _Text(io.StringIO):
    """Text for stderr, in whose encoding a table may have to do without lines."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(sys.stderr, "encoding", None) or "utf-8"


def render_lines(*renderables: "RenderableType") -> list[str]:
    """Render tables of `rich` as lines of plain text, as wide as stderr."""
    from rich.console import Console

    text = _Text()
    Console(file=text, width=Console(stderr=True).width, soft_wrap=True).print(*renderables)
    return text.getvalue().rstrip("\n").split("\n")
