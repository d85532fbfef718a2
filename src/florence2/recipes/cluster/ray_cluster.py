"""The connection to a Ray cluster, and how its resources are divided among engines."""

from __future__ import annotations

import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from florence2.errors import MissingPackageError, OptionError
from florence2.log import count_noun, logger
from florence2.system import switch_off_telemetry

READ_CPUS = 0.25  # of one read task, which mostly waits for the store
NODE_WAIT = 60  # seconds
CONNECT_WAIT = 10  # seconds
_HOST_AND_PORT = re.compile(r"(?:ray://)?([^:/]+):(\d+)")
CORES_PER_ENGINE = 4  # of an engine on a CPU, unless OMP_NUM_THREADS is set
_INSTALL = 'run `pip install "florence2[cluster]"`'


@dataclass(frozen=True)
class EnginePool:
    """Engines on the nodes of a cluster: their number at the start, and the cores and GPUs of each.

    With `is_growing`, GPUs of nodes that join later get engines, too.
    """

    size: int
    num_cores: int
    num_gpus: int
    is_growing: bool = False

    @property
    def reserved_cpus(self) -> float:
        """Return the CPUs that Ray reserves for an engine: one core of its group, or half of the only one, reads."""
        return self.num_cores - 1 if self.num_cores > 1 else 0.5

    @property
    def device(self) -> str | None:
        """Return the device of each engine; None is the GPU that Ray assigns to it."""
        return None if self.num_gpus else "cpu"

    @classmethod
    def of_nodes(cls, nodes: list[dict[str, Any]], device: str | None) -> EnginePool:
        """Give each GPU an engine, or, without GPUs or with `--device cpu`, each group of cores."""
        resources = [node["Resources"] for node in nodes if node["Alive"] and node["Resources"].get("CPU")]
        if not resources:
            raise OptionError("the Ray cluster has no node with a CPU", "start a node with `ray start`")
        gpus = [int(each.get("GPU", 0)) for each in resources]
        if device != "cpu" and any(gpus):
            cores = [int(each["CPU"]) // number for each, number in zip(resources, gpus, strict=True) if number]
            return cls(sum(gpus), max(1, min(cores)), 1, is_growing=True)
        if device not in (None, "cpu"):
            raise OptionError(f"the Ray cluster has no GPU for `--device {device}`", "pass `--device cpu`")
        chosen = int(os.environ.get("OMP_NUM_THREADS", CORES_PER_ENGINE))
        num_cores = max(1, min(chosen, *(int(each["CPU"]) for each in resources)))
        return cls(sum(int(each["CPU"]) // num_cores for each in resources), num_cores, 0)


def import_ray() -> Any:
    """Import Ray; its reports of usage and its copies of the environment are off unless the user sets them."""
    switch_off_telemetry()
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingPackageError("this needs the package `ray[data]`, which is not installed", _INSTALL) from error
    return ray


@contextmanager
def connect(address: str) -> Iterator[Any]:
    """Connect to a cluster; `auto` is the one of this machine or of RAY_ADDRESS, else a new one on this machine."""
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    target = find_address() if address == "auto" else address
    if target is not None:
        _check_port(target)
    try:
        ray.init(target, logging_level="warning", log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _unreachable(address, error) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def find_address() -> str | None:
    """Return RAY_ADDRESS, or `local` where the cluster that Ray remembers on this machine has ended without a trace."""
    if address := os.environ.get("RAY_ADDRESS"):
        return address
    path = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray" / "ray_current_cluster"
    try:
        remembered = path.read_text(encoding="utf-8").strip()
        _check_port(remembered)
    except (OSError, ValueError):
        return None
    except OptionError:
        logger.warning(f"the Ray cluster at {remembered} has ended; a new one is started")
        return "local"
    return None


def _check_port(address: str) -> None:
    """Refuse the address of a host and port at which nothing answers, for which Ray waits for minutes."""
    if match := _HOST_AND_PORT.fullmatch(address):
        try:
            socket.create_connection((match[1], int(match[2])), timeout=CONNECT_WAIT).close()
        except (OSError, OverflowError) as error:
            raise _unreachable(address, error) from None


def _unreachable(address: str, error: Exception) -> OptionError:
    message = " ".join(str(error).split())
    return OptionError(
        f"the Ray cluster `{address}` cannot be reached: {message}", "check the address, or pass `--cluster auto`"
    )


def find_pool(ray: Any, device: str | None) -> EnginePool:
    """Divide the nodes of the cluster among engines.

    Where no node has a CPU yet, or, with `--device cuda`, no GPU, wait a minute for one.
    """
    kind = "CPU" if device in (None, "cpu") else "GPU"
    for _ in range(NODE_WAIT):
        nodes = [node for node in ray.nodes() if node["Alive"]]
        if any(node["Resources"].get(kind) for node in nodes):
            break
        time.sleep(1)
    pool = EnginePool.of_nodes(nodes, device)
    kind = "1 GPU" if pool.num_gpus else count_noun(pool.num_cores, "core")
    logger.info(
        f"{count_noun(len(nodes), 'node')} of a Ray cluster, {count_noun(pool.size, 'engine')} with {kind} each"
    )
    return pool
