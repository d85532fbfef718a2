"""The rivals of `throughput`: their precision, what they run, and where they can."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

ALL = "all"
BENCHMARKS = Path(__file__).parent
JAVASCRIPT = BENCHMARKS / "transformersjs_contestant.mjs"
EXAMPLE = BENCHMARKS.parent / "examples" / "node"


@dataclass(frozen=True)
class Rival:
    """A rival; `target` is the layout of the export that it runs, `modules` are the Python packages that it needs."""

    name: str
    dtype: str
    target: str = ""
    modules: tuple[str, ...] = ()
    is_batched: bool = False
    has_beams: bool = True
    is_in_all: bool = True  # all at once need too much memory
    is_engine: bool = False  # this package's own, which chooses its batch size

    def configs(self, batch_sizes: Sequence[int]) -> list[dict[str, Any]]:
        """Return what is the rival's own in the config of a contestant, for each batch size."""
        own = {"name": self.name, "dtype": self.dtype, "target": self.target, "compile": "off"}
        own_size = 0 if self.is_engine else 1
        return [own | {"batch_size": size} for size in (batch_sizes if self.is_batched else [own_size])]

    def obstacle(self, options: argparse.Namespace, is_half_native: bool) -> str:
        """Return why the rival takes no part; empty where it can."""
        missing = [module for module in self.modules if find_spec(module) is None]
        if self.name.startswith("transformersjs") and (node_modules() is None or shutil.which("node") is None):
            missing.append("transformers.js (run `npm install` in examples/node) with Node")
        if missing:
            return f"needs {' and '.join(missing)}"
        if options.num_beams > 1 and not self.has_beams:
            return "has no beam search"
        if ((self.target and self.target != "microsoft") or self.is_engine) and options.device != "cpu":
            return "runs on the CPU here"
        if self.is_engine and not torch.cpu._is_vnni_supported():  # type: ignore[no-untyped-call]
            return "needs a CPU with AVX-512 VNNI"
        if options.decoded and self.name.startswith("transformersjs"):
            return "decodes images itself"
        if self.dtype in ("bfloat16", "float16") and not is_half_native:
            return "the device has no native bfloat16 support"
        return ""


RIVALS = (
    Rival("ours-int8", "int8", is_engine=True),  # not a rival: beside them, as `florence2 predict --dtype int8`
    Rival("hf-fp32", "float32"),  # `generate` as on the model card, one image at a time
    # Tuned: with channels-last weights and an allocator that keeps freed memory.
    Rival("hf-fp32-tuned", "float32", is_batched=True, is_in_all=False),
    Rival("hf-bf16", "bfloat16", is_batched=True, is_in_all=False),
    Rival("hf-bf16-tuned", "bfloat16", is_batched=True),
    Rival("openvino-fp32", "float32", "openvino", ("openvino", "onnx"), is_in_all=False),
    Rival("openvino-bf16", "float16", "openvino", ("openvino", "onnx")),  # weights in float16, arithmetic in bfloat16
    Rival("openvino-int8", "int8", "openvino", ("openvino", "nncf", "onnx")),
    Rival("onnxruntime", "float32", "onnx", ("onnxruntime", "onnx")),
    Rival("onnxruntime-int8", "int8", "onnx", ("onnxruntime", "onnx")),
    Rival("transformersjs", "float32", "onnx", ("onnxruntime", "onnx"), has_beams=False),
    Rival("transformersjs-int8", "int8", "onnx", ("onnxruntime", "onnx"), has_beams=False, is_in_all=False),
    Rival("vllm", "bfloat16", "microsoft", ("vllm", "vllm_bart_plugin"), has_beams=False),
)


@contextmanager
def contestant_command(config: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the command of a contestant's process; Node finds its packages beside the script."""
    if not config["name"].startswith("transformersjs"):
        yield [sys.executable, "-m", "benchmarks.contestants", json.dumps(config)]
        return
    folder, packages = Path(tempfile.mkdtemp()), node_modules()
    assert packages is not None
    (folder / "node_modules").symlink_to(packages)
    yield ["node", str(shutil.copy(JAVASCRIPT, folder)), json.dumps(config)]


def node_modules() -> Path | None:
    """Return the folder `node_modules` with transformers.js: named, of the example, or where the tests install it."""
    version = json.loads((EXAMPLE / "package.json").read_text())["dependencies"]["@huggingface/transformers"]
    candidates = [EXAMPLE, Path(tempfile.gettempdir()) / f"florence2-transformers.js-{version}"]
    folders = [Path(os.environ.get("FLORENCE2_NODE_MODULES", "")), *(each / "node_modules" for each in candidates)]
    return next((each.resolve() for each in folders if (each / "@huggingface" / "transformers").is_dir()), None)
