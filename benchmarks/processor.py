"""The processor of a benchmark, by name, for its report. Imports no torch."""

import platform
from pathlib import Path


def processor_name() -> str:
    """Return the name of the CPU and of its bfloat16 instructions."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    model = next((line.split(":")[1].strip() for line in text.splitlines() if "model name" in line), platform.machine())
    units = [unit for unit in ("amx_bf16", "avx512_bf16", "avx512_vnni") if unit in text]
    return f"{model} ({', '.join(units) or 'no native bfloat16'})"
