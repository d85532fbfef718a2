"""A Ray cluster of several nodes on this machine, whose workers and nodes can be killed."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.s3 import HOST, free_port, wait_for

ENGINE = "PackActor"  # in the titles of the processes of engines


class RayNodes:
    """A head without CPUs, and nodes with `cpus` each; without nodes the head has them. `close` kills all."""

    def __init__(self, num_nodes: int, cpus: int = 1) -> None:
        self.cpus = cpus
        pytest.importorskip("ray")
        self.folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # sockets have short paths
        port = free_port()
        self.address = f"{HOST}:{port}"
        head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self.folder}"]
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.head = self._start_until_it_runs(*head, f"--num-cpus={0 if num_nodes else cpus}")
        try:
            wait_for(port)
            for _ in range(num_nodes):
                self.add_node()
        except BaseException:
            self.close()
            raise

    def add_node(self) -> None:
        self.nodes.append(self._start_until_it_runs(f"--address={self.address}", f"--num-cpus={self.cpus}"))

    def _start_until_it_runs(self, *flags: str) -> subprocess.Popen[bytes]:
        """Start a node; Ray gives up after 30 seconds, which a busy machine may need."""
        for _ in range(10):
            before = self._num_started()
            process = self._start(*flags)
            wait_until(
                lambda before=before, process=process: self._num_started() > before or process.poll() is not None
            )
            if process.poll() is None:
                return process
        raise RuntimeError((self.folder / "log").read_text()[-2000:])

    def _num_started(self) -> int:
        log = self.folder / "log"
        return log.read_text().count("Ray runtime started") if log.exists() else 0

    def _start(self, *flags: str) -> subprocess.Popen[bytes]:
        memory = f"--object-store-memory={80 * 2**20}"
        words = ["start", *flags, memory, "--block", "--disable-usage-stats"]
        command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", *words]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(command, env=ray_environment(), stdout=log, stderr=log)

    def engines(self) -> list[psutil.Process]:
        """Return the processes of engines, of all nodes."""
        return [
            process for node in (self.head, *self.nodes) for process in descendants(node) if ENGINE in title(process)
        ]

    def kill_engine(self) -> int:
        process = self.engines()[0]
        process.kill()
        return process.pid

    def kill_node(self, index: int) -> None:
        kill_all(self.nodes.pop(index))

    def close(self) -> None:
        for node in (*self.nodes, self.head):
            kill_all(node)
        shutil.rmtree(self.folder, ignore_errors=True)


def ray_environment() -> dict[str, str]:
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_AUTH_MODE": "disabled"}
    return {**os.environ, **quiet, "OMP_NUM_THREADS": "1"}


def descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def title(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """Kill a process with all that it started."""
    for each in descendants(process):
        with suppress(psutil.NoSuchProcess):
            each.kill()
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGKILL)
    process.wait()


@contextmanager
def ray_nodes(num_nodes: int, cpus: int = 1) -> Iterator[RayNodes]:
    nodes = RayNodes(num_nodes, cpus)
    try:
        yield nodes
    finally:
        nodes.close()


def wait_until(is_true: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.05)
