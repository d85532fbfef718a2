"""Memory over a run on a Ray cluster, as lines of JSON: driver, engines, other workers, and the object stores.

    python -m tests.ray_memory 127.0.0.1:6379 memory.jsonl

Memory of a process is what it shares with no other one; `store_used` is what the object stores of all nodes contain.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.ray_nodes import ENGINE, title

PERIOD = 2.0  # seconds


class MemoryRecord:
    """A file of measurements, which another process appends, and of events in between."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def mark(self, event: str) -> None:
        append(self.path, {"event": event})


@contextmanager
def record_memory(address: str, path: Path) -> Iterator[MemoryRecord]:
    """Record in a process of its own until the block ends."""
    path.unlink(missing_ok=True)
    process = subprocess.Popen([sys.executable, "-m", "tests.ray_memory", address, str(path)])
    try:
        yield MemoryRecord(path)
    finally:
        process.kill()
        process.wait()


def append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps({"time": round(time.time(), 2), **row}) + "\n")


def measure(address: str) -> dict[str, Any]:
    """Return the private memory of each kind of process in bytes."""
    found: dict[str, list[int]] = {"driver": [], "engines": [], "workers": [], "raylets": []}
    for process in psutil.process_iter():
        kind = kind_of(process, address)
        if kind:
            try:
                found[kind].append(process.memory_full_info().uss)
            except psutil.Error:
                continue
    return found


def kind_of(process: psutil.Process, address: str) -> str:
    words = title(process)
    if "/raylet " in words and f":{address.rpartition(':')[2]}" in words:
        return "raylets"
    if "florence2 predict" in words and address in words:
        return "driver"
    if words.startswith("ray::"):
        return "engines" if ENGINE in words else "workers"
    return ""


def store_stats(address: str) -> dict[str, int]:
    """Return what the object stores of all nodes contain and have written to disks."""
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    stats = get_memory_info_reply(get_state_from_address(address), timeout_seconds=5).store_stats
    return {
        "store_used": stats.object_store_bytes_used,
        "store_size": stats.object_store_bytes_avail,
        "store_spilled": stats.spilled_bytes_total,
    }


def main(address: str, path: Path) -> None:
    while True:
        row: dict[str, Any] = measure(address)
        try:
            row |= store_stats(address)
        except Exception as error:
            row["store_error"] = type(error).__name__
        append(path, row)
        time.sleep(PERIOD)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
