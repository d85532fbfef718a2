"""The text of a report of `florence2 doctor`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_GIB = 2**30


def report_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a report: the machine, the choices, what is missing, what was checked, the problems."""
    yield from _machine_lines(report)
    for command in ("predict", "train"):
        name = f", for `{report['auto']['model']}`" if command == "predict" else ""
        yield f"`florence2 {command}` chooses{name}:"
        for choice in report["auto"][command]:
            yield f"  {choice['flag']} {choice['value']}: {choice['reason']}"
    yield from _missing_lines(report)
    if report["checked"]:
        yield from _checked_lines(report["checked"])
    for problem in report["problems"]:
        yield f"problem: {problem['what']}"
        if problem["hint"]:
            yield f"  hint: {problem['hint']}"
    number = len(report["problems"])
    yield f"{number} problem{'s' * (number != 1)}" if number else "no problems"


def _machine_lines(report: Mapping[str, Any]) -> Iterator[str]:
    versions, cpu, memory = report["versions"], report["cpu"], report["memory"]
    yield ", ".join(f"{name} {number or 'missing'}" for name, number in versions.items())
    yield report["platform"]
    sets = [name for name, is_there in cpu["instruction_sets"].items() if is_there]
    absent = [name for name, is_there in cpu["instruction_sets"].items() if not is_there]
    yield f"CPU: {cpu['name']}, {cpu['cores']} cores; threads of torch: {cpu['torch_threads']}"
    yield f"  instruction sets: {', '.join(sets) or 'none of those'}; not: {', '.join(absent) or 'none'}"
    yield f"memory: {memory['free_bytes'] / _GIB:.1f} GiB free of {memory['total_bytes'] / _GIB:.1f} GiB"
    for device in report["devices"]:
        bfloat16 = "native bfloat16" if device["native_bfloat16"] else "no native bfloat16"
        line = f"device `{device['device']}`: {bfloat16}"
        if "name" in device:
            line += f", {device['name']}, {device['free_bytes'] / _GIB:.1f} GiB free"
            line += f" of {device['total_bytes'] / _GIB:.1f} GiB"
        yield line
    yield f"C++ compiler: {'found' if report['compiler'] else 'none, so `--compile` does not work'}"
    if report["hub_offline"]:
        yield "HF_HUB_OFFLINE is set: models of the hub are read from its cache only"


def _missing_lines(report: Mapping[str, Any]) -> Iterator[str]:
    installed = [extra["extra"] for extra in report["extras"] if extra["installed"]]
    yield f"extras installed: {', '.join(installed) or 'none'}"
    for extra in report["extras"]:
        if not extra["installed"]:
            purpose = f" ({extra['for']})" if extra["for"] else ""
            yield f"  not installed: {extra['extra']}{purpose}: {extra['command']}"
    for name, is_installed in report["programs"].items():
        if not is_installed:
            yield f"  not installed: {name}"


def _checked_lines(checked: Mapping[str, Any]) -> Iterator[str]:
    yield f"{checked['kind']} `{checked['path']}`: {'sound' if checked['sound'] else 'not sound'}"
    for name, value in checked.items():
        if name in {"path", "kind", "sound", "problems"}:
            continue
        yield f"  {name.replace('_', ' ')}: {_text(value)}"


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(each)}" for key, each in value.items()) or "none"
    if isinstance(value, list) and value and all(isinstance(each, int) for each in value):
        return " x ".join(map(str, value))  # a size
    if isinstance(value, list):
        return "; ".join(map(_text, value)) or "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
