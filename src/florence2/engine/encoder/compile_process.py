"""A process that compiles a vision tower beside the engine, which answers images uncompiled meanwhile.

Compiling takes a minute or more, and tracing a model replaces methods of torch for the whole process, so that a thread
of the engine's own process could not do it. The process compiles a tower of the same structure without the weights, and
so fills torch's cache of compiled code on the disk. The engine then compiles its own tower in seconds: it traces the
model, and finds the code.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import torch
from torch import Tensor

from florence2.engine.encoder.compile_job import CompileJob

_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from florence2.engine.encoder.compile_main import main; main()"
)
_MAX_REASON = 200  # characters of what the process wrote


class CompileProcess:
    """The process that compiles one tower; `close()` ends it, and it ends by itself when this process ends.

    `reason` says why it failed, once it has.
    """

    def __init__(self, tower: Any, pixels_BCHW: Tensor) -> None:
        """Start the process; raises OSError or PicklingError where that is not possible."""
        job = CompileJob(tower, pixels_BCHW, torch.get_num_threads(), torch.get_float32_matmul_precision()).to_bytes()
        self._start = time.monotonic()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  `close` closes it
        self._process = _start_process(self._stderr.fileno())
        # The pipe stays open: its end tells the process that this one has ended.
        threading.Thread(target=self._send, args=(job,), name="compile job", daemon=True).start()

    @property
    def pid(self) -> int:
        """Return the id of the process."""
        return self._process.pid

    @property
    def seconds(self) -> float:
        """Return the time since the start."""
        return time.monotonic() - self._start

    def poll(self) -> bool | None:
        """Return whether the process has succeeded; None while it runs."""
        code = self._process.poll()
        return None if code is None else code == 0

    def wait(self) -> None:
        """Wait until the process has ended."""
        self._process.wait()

    @property
    def reason(self) -> str:
        """Return the last line that the process wrote, or how it ended."""
        code = self._process.returncode
        if code is not None and code < 0:
            return f"its process was ended by signal {-code}: {signal.strsignal(-code)}"
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - 2**16))
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return (lines or [f"its process ended with code {code}"])[-1][:_MAX_REASON]

    def _send(self, job: bytes) -> None:
        assert self._process.stdin
        with contextlib.suppress(OSError, ValueError):  # the process has ended, and its output says why
            self._process.stdin.write(job)
            self._process.stdin.flush()

    def close(self) -> None:
        """End the process, and the compilers that it started."""
        if self._process.poll() is None:
            _kill(self._process)
        self._process.wait()
        assert self._process.stdin
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._stderr.close()


def _start_process(stderr: int) -> subprocess.Popen[bytes]:
    """Start the interpreter, in a process group of its own, which ends as a whole."""
    words = [sys.executable, "-P", "-c", _CODE, json.dumps(sys.path)]
    options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": stderr}
    if sys.platform == "win32":
        return subprocess.Popen(words, creationflags=subprocess.CREATE_NEW_PROCESS_GROUP, **options)
    return subprocess.Popen(words, process_group=0, **options)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if sys.platform == "win32":
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
