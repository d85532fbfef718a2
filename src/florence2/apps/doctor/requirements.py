"""The packages that florence2 requires, and those of its extras: which are missing, and the command that installs them.

Read from the metadata of the installed package, so that no list is repeated here.
"""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

PACKAGE = "florence2"
# What each extra is for; an extra without a line here is listed without one.
PURPOSES = {
    "wandb": "`--log_with wandb`",
    "tensorboard": "`--log_with tensorboard`",
    "optimizers": "`--optim` with optimizers of other packages",
    "quantize": "`--quantize`",
    "evaluate": "`florence2 evaluate`",
    "serve": "`florence2 serve`",
    "mcp": "`florence2 mcp`",
    "onnx": "export to ONNX",
    "openvino": "export to OpenVINO",
    "remote": "images in object stores",
    "cluster": "Ray Data",
    "all": "every extra",
}
_EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")


@dataclass(frozen=True)
class ExtraReport:
    """An extra with the packages that are missing or have another version than it needs."""

    name: str
    unmet: tuple[str, ...]

    @property
    def command(self) -> str:
        """Return the command that installs the extra."""
        return f"pip install '{PACKAGE}[{self.name}]'"

    def to_json(self) -> dict[str, Any]:
        """Return the extra as a JSON object."""
        return {
            "extra": self.name,
            "for": PURPOSES.get(self.name, ""),
            "installed": not self.unmet,
            "missing": list(self.unmet),
            "command": self.command,
        }


def unmet_requirements() -> tuple[str, ...]:
    """Return what the package itself requires and does not find, such as `peft>=0.19,<1 (found 0.10)`."""
    return _unmet(_requirements().get("", []))


def report_extras() -> list[ExtraReport]:
    """Return every extra; an empty list where the package runs from a folder without being installed."""
    return [ExtraReport(name, _unmet(rows)) for name, rows in sorted(_requirements().items()) if name]


def report_programs() -> dict[str, bool]:
    """Return whether the programs that some flags need are installed."""
    return {"java (for `--meteor`)": shutil.which("java") is not None}


def _requirements() -> dict[str, list[Requirement]]:
    """Group the requirements of the installed package by extra; those of the package itself are under ""."""
    groups: defaultdict[str, list[Requirement]] = defaultdict(list)
    try:
        rows = requires(PACKAGE) or []
    except PackageNotFoundError:
        rows = []
    for row in rows:
        extra = _EXTRA.search(row)
        try:
            requirement = Requirement(row)
        except InvalidRequirement:
            continue
        name = extra[1] if extra else ""
        if requirement.marker is None or requirement.marker.evaluate({"extra": name}):
            groups[name].append(requirement)
    return dict(groups)


def _unmet(requirements: list[Requirement]) -> tuple[str, ...]:
    unmet = []
    for requirement in requirements:
        required = f"{requirement.name}{requirement.specifier}"
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            unmet.append(required)
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            unmet.append(f"{required} (found {found})")
    return tuple(unmet)
