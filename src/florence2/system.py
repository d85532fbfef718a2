"""What belongs to this machine and process: compiler, memory, allocator, telemetry, exit. Knows no torch, no model."""

import atexit
import ctypes
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import NoReturn

from florence2.errors import MissingPackageError

MIB = 2**20
_NO_TELEMETRY = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "WANDB_ERROR_REPORTING": "false",
}


def require_compiler(flag: str) -> None:
    """Raise an error where no C++ compiler is installed; `flag` is the flag that needs it."""
    if not has_compiler():
        raise MissingPackageError(
            f"{flag} needs `{_compiler()}`, which is not installed", "install it, or remove the flag"
        )


def has_compiler() -> bool:
    """Return whether torch will find a C++ compiler."""
    return shutil.which(_compiler()) is not None


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


def free_memory() -> int:
    """Count the bytes that this process can still allocate: the free memory, within the limits of its container."""
    import psutil  # comes with accelerate

    free = int(psutil.virtual_memory().available)
    return min([free, *(limit - used for limit, used in _cgroup_limits(Path("/sys/fs/cgroup")))])


def _cgroup_limits(root: Path) -> list[tuple[int, int]]:
    """Read limit and use of the control group of this process, of version 1 or 2; the page cache does not count."""
    limits = []
    for limit_name, used_name, cache_name in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            limit, used = _read(root / limit_name), int(_read(root / used_name))
            rows = _read((root / used_name).with_name("memory.stat")).splitlines()
        except (OSError, ValueError):
            continue
        cache = dict(row.split() for row in rows).get(cache_name, "0")
        if limit.isdigit():  # it is `max` without a limit
            limits.append((int(limit), used - int(cache)))
    return limits


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip()


def tune_allocator() -> bool:
    """Let this process keep the memory it frees; return whether the C library supports it (glibc does).

    By default glibc returns every large activation to the system and faults it in again, which costs a CPU run a fifth
    to almost half of its speed. Call it before the model runs. It affects the whole process, so only a command calls
    it.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    # No mapping of their own for large blocks; never trim; grow by 64 MiB.
    options = ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 64 * MIB))
    return all(mallopt(name, value) == 1 for name, value in options)


def switch_off_telemetry() -> None:
    """Keep libraries from reporting their use, unless the environment asks for it; call it before they are imported.

    OpenVINO and NNCF report each import by a package that knows no variable; without that package they report nothing.
    """
    for name, value in _NO_TELEMETRY.items():
        os.environ.setdefault(name, value)
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def exit_process(code: int) -> NoReturn:
    """End the process after its threads and exit handlers, without finalizing the interpreter.

    A native thread that still runs while the interpreter is finalized aborts the process with exit code 134. Output
    that cannot be written, to a full disk or a closed pipe, makes code 0 a 1.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 1
    os._exit(code)
