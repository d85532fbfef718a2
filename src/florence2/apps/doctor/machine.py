"""The machine: versions, processor, instruction sets, memory and devices, as one JSON object."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from florence2 import __version__
from florence2.devices import has_bfloat16
from florence2.system import free_memory, has_compiler

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "safetensors", "numpy", "pillow")
# The checks of torch for the instruction sets that its kernels use.
_INSTRUCTION_SETS = {
    "AVX2": "_is_avx2_supported",
    "AVX-512": "_is_avx512_supported",
    "AVX-512 bf16": "_is_avx512_bf16_supported",
    "VNNI": "_is_vnni_supported",
    "AMX": "_is_amx_tile_supported",
}


def describe_machine() -> dict[str, Any]:
    """Return the facts of this machine."""
    return {
        "versions": describe_versions(),
        "platform": platform.platform(),
        "cpu": {
            "name": _cpu_name(),
            "cores": _num_cores(),
            "torch_threads": torch.get_num_threads(),
            "instruction_sets": _instruction_sets(),
        },
        "memory": {"total_bytes": int(psutil.virtual_memory().total), "free_bytes": free_memory()},
        "devices": [_describe_device(device) for device in _devices()],
        "compiler": has_compiler(),
        "hub_offline": os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "on", "yes", "true"},
    }


def describe_versions() -> dict[str, str | None]:
    """Return the versions of Python, of this package and of those that decide a result; None where one is missing."""
    versions: dict[str, str | None] = {"florence2": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions


def _cpu_name() -> str:
    """Return the name of the processor, as far as the system tells it."""
    try:
        rows = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        rows = []
    names = [row.partition(":")[2].strip() for row in rows if row.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _num_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _instruction_sets() -> dict[str, bool]:
    """Return which instruction sets this processor has, by the checks of torch; those that it cannot check are off."""
    return {name: bool(getattr(torch.cpu, check, bool)()) for name, check in _INSTRUCTION_SETS.items()}


def _devices() -> list[torch.device]:
    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return [*gpus, *([torch.device("mps")] if torch.mps.is_available() else []), torch.device("cpu")]


def _describe_device(device: torch.device) -> dict[str, Any]:
    description: dict[str, Any] = {"device": str(device), "native_bfloat16": has_bfloat16(device)}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        name = torch.cuda.get_device_name(device)
        description |= {"name": name, "compute_capability": capability, "total_bytes": total, "free_bytes": free}
    return description
