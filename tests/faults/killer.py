"""Runs a function in a forked process whose libraries are loaded; kills it after some time or at a file operation."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

PRELOADED = [
    "tests.faults.killer",
    "florence2.cli.program",
    "florence2.engine.engine",
    "florence2.model.load",
    "florence2.model.inference",
    "florence2.recipes.predict",
    "florence2.recipes.train",
    "florence2.results.annotated_images",
    "tests.training.images",
]
# What Python announces before it changes a file or a folder; `open` counts where it opens for writing.
OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.utime"}
ORPHANS_END_WITHIN = 30.0  # seconds


@dataclass(frozen=True)
class Ending:
    """How a process ended: its exit code (None if it was killed), its file operations, and processes it left behind."""

    code: int | None
    num_operations: int
    seconds: float
    has_orphans: bool

    @property
    def is_killed(self) -> bool:
        """Return whether the process was killed."""
        return self.code is None


class Killer:
    """Starts processes by a fork server; `log` is where their output goes."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload(PRELOADED)

    def run(
        self, function: Callable[..., Any], *args: Any, seconds: float | None = None, operation: int | None = None
    ) -> Ending:
        """Run a function; kill it after `seconds`, or before the file operation of a number, if it has not ended."""
        counter = self._processes.Value("q", 0, lock=False)
        target = (function, args, operation, counter, str(self._log))
        process = self._processes.Process(target=_run, args=target)
        start = time.monotonic()
        process.start()
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
        process.join()
        taken = time.monotonic() - start
        assert process.pid is not None
        code = None if process.exitcode == -signal.SIGKILL else process.exitcode
        return Ending(code, int(counter.value), taken, _has_orphans(process.pid))


def _run(function: Callable[..., Any], args: tuple[Any, ...], operation: int | None, counter: Any, log: str) -> None:
    os.setpgrp()  # processes that outlive this one are found by it
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)

    def count(event: str, details: tuple[Any, ...]) -> None:
        if event in OPERATIONS and (event != "open" or _is_for_writing(details)):
            counter.value += 1
            if counter.value == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    code = function(*args)
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)


def _is_for_writing(details: tuple[Any, ...]) -> bool:
    _, mode, flags = details
    return (
        any(letter in mode for letter in "wax+") if isinstance(mode, str) else bool(flags & (os.O_WRONLY | os.O_RDWR))
    )


def _has_orphans(group: int) -> bool:
    """Wait until no process of a group is left, and return whether there is one after `ORPHANS_END_WITHIN`."""
    deadline = time.monotonic() + ORPHANS_END_WITHIN
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.01)
    return True
