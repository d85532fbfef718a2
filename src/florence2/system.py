"""What this machine offers: its compiler, its memory and its allocator. Knows no torch and no model."""

import ctypes
import os
import shutil
from pathlib import Path

from florence2.errors import UserError

MIB = 2**20


def require_compiler(flag: str) -> None:
    """Refuse to compile where there is no C++ compiler; `flag` is what asked for it."""
    if not has_compiler():
        raise UserError(f"{flag} needs `{_compiler()}`, which is not installed", "install it, or leave the flag out")


def has_compiler() -> bool:
    """Tell whether torch will find a C++ compiler."""
    return shutil.which(_compiler()) is not None


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


def free_memory() -> int:
    """Count the bytes this process may still take: what the system has, within the limits of its container."""
    import psutil  # comes with accelerate

    free = int(psutil.virtual_memory().available)
    return min([free, *(limit - used for limit, used in _group_limits(Path("/sys/fs/cgroup")))])


def _group_limits(root: Path) -> list[tuple[int, int]]:
    """Read limit and use of the control groups this process is in, of either version; pages of files do not count."""
    found = []
    for limit_name, used_name, cache_name in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            limit, used = (root / limit_name).read_text().strip(), int((root / used_name).read_text())
            rows = (root / used_name).with_name("memory.stat").read_text().splitlines()
        except (OSError, ValueError):
            continue
        cache = dict(row.split() for row in rows).get(cache_name, "0")
        if limit.isdigit():  # else it says `max`
            found.append((int(limit), used - int(cache)))
    return found


def tune_allocator() -> bool:
    """Let this process keep the memory it frees; tell whether the C library took the advice (glibc does).

    By default glibc gives every large activation back to the system and faults it in again, which costs a CPU run a
    fifth to almost half of its speed. Call it before the model runs; it holds for the whole process, so it is left to
    whoever owns the process.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    # No own mapping for large blocks; give nothing back; grow by 64 MiB.
    advice = ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 64 * MIB))
    return all(mallopt(name, value) == 1 for name, value in advice)
