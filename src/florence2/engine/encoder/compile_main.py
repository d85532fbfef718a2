"""The process of `compile_process.py`: it compiles a vision tower for the cache on the disk, and ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

import torch

from florence2.devices import is_out_of_memory
from florence2.engine.encoder.compile_job import CompileJob

_NICENESS = 10  # images that are answered meanwhile come first


def main() -> None:
    """Compile the job that comes through stdin; the last line on stderr says why it failed."""
    if sys.platform != "win32":
        os.nice(_NICENESS)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the engine handles it, and ends this process
    job = CompileJob.read(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(job.num_threads)
    if torch.get_float32_matmul_precision() != job.matmul_precision:  # to set it is another entry of the cache
        torch.set_float32_matmul_precision(job.matmul_precision)
    try:
        fill_cache(job.tower, job.pixels)
    except Exception as error:  # compilers raise exceptions of any type
        sys.stderr.write(f"\n{type(error).__name__}: {' '.join(str(error).split())}\n")
        code = 1
    else:
        code = 0
    sys.stderr.flush()
    os._exit(code)


@torch.inference_mode()
def fill_cache(tower: Any, pixels_BCHW: torch.Tensor) -> None:
    """Compile a tower for the cache of torch on the disk; raises RuntimeError where torch does not cache it."""
    from torch._dynamo.utils import counters

    try:
        compile_tower(tower)(pixels_BCHW)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):  # by the first run, which follows when the code is in the cache
            raise
    found = counters["inductor"]
    if not found["fxgraph_cache_miss"] + found["fxgraph_cache_hit"] or found["fxgraph_cache_bypass"]:
        raise RuntimeError("torch does not cache the compiled code")


def compile_tower(tower: Any) -> Any:
    """Return the tower as torch compiles it at its first call; shapes are fixed, for a micro-batch is always full."""
    return torch.compile(tower, dynamic=False)


def _end_with_parent() -> None:
    """End this process and its compilers when the engine's process has ended, in whatever way."""
    sys.stdin.buffer.read()
    if sys.platform != "win32":
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
