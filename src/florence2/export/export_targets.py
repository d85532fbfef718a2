"""The table of targets: what an export writes, in which dtypes, and how it is read back.

A target is a row of `TARGETS`. Its module is imported when it is used, because some need packages of an extra.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path

from florence2.errors import OptionError
from florence2.export.comparison import LogitsFn
from florence2.export.export_source import ExportSource, exact_dtype
from florence2.settings_io import closest_name_hint

_FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Target:
    """A layout to export to.

    `module` has three functions: `write(source, folder, dtype, max_shard_size)` writes the files,
    `read_logits(source, folder)` loads them again as other programs do and returns a `LogitsFn`, and
    `usage(source, folder)` returns the Markdown of the README that says how to load them. `dtype` is a name of
    `dtypes`; the default `exact` is the smallest that holds every weight.
    """

    name: str
    module: str
    dtypes: tuple[str, ...] = _FLOATS
    default_dtype: str = "exact"
    is_adapter: bool = False

    def resolve_dtype(self, dtype: str, source: ExportSource) -> str:
        """Return the dtype of the export for `--dtype`."""
        if dtype != "auto":
            return dtype
        if self.default_dtype != "exact":
            return self.default_dtype
        if self.is_adapter and source.adapter:
            return exact_dtype(source.adapter.state.values())
        return exact_dtype(source.model.parameters())

    def write(self, source: ExportSource, folder: Path, dtype: str, max_shard_size: str) -> None:
        """Write the files of the export."""
        importlib.import_module(self.module).write(source, folder, dtype, max_shard_size)

    def read_logits(self, source: ExportSource, folder: Path) -> LogitsFn:
        """Load the export, and return the function that computes its logits."""
        logits: LogitsFn = importlib.import_module(self.module).read_logits(source, folder)
        return logits

    def usage(self, source: ExportSource, folder: Path) -> str:
        """Return the section of the README that says how to load the export."""
        return str(importlib.import_module(self.module).usage(source, folder))


_TARGETS = (
    Target("transformers", "florence2.export.layouts.transformers_layout"),
    Target("microsoft", "florence2.export.layouts.microsoft_layout"),
    Target("adapter-microsoft", "florence2.export.layouts.microsoft_adapter", is_adapter=True),
    Target("onnx", "florence2.export.onnx.onnx_target", ("float32", "float16", "int8", "q4"), "float32"),
    Target("openvino", "florence2.export.openvino.openvino_target", ("float32", "float16", "int8"), "float32"),
)
TARGETS: dict[str, Target] = {target.name: target for target in _TARGETS}


def find_target(name: str, dtype: str) -> Target:
    """Return the target of `--to`; raise OptionError for a dtype that it cannot have."""
    if name not in TARGETS:
        raise OptionError(f"`{name}` is not a target", closest_name_hint(name, list(TARGETS)))
    target = TARGETS[name]
    if dtype not in ("auto", *target.dtypes):
        able = [each.name for each in TARGETS.values() if dtype in each.dtypes]
        reason = f"only {' and '.join(able)} can have it" if able else "no target can have it"
        raise OptionError(
            f"`--to {name}` has no `--dtype {dtype}`: {reason}", f"pass one of {', '.join(target.dtypes)}"
        )
    return target
