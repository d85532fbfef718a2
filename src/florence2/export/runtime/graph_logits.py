"""The logits of exported graphs, for the comparison with their model."""

import copy
from pathlib import Path

import torch

from florence2.errors import OptionError
from florence2.export.comparison import ComparisonCase, LogitsFn
from florence2.export.export_source import ExportSource
from florence2.export.layouts.torch_logits import torch_logits
from florence2.export.runtime.load_exported import load_exported


def graph_logits(source: ExportSource, folder: Path) -> LogitsFn:
    """Load the graphs of a folder, and return the function that computes their logits.

    Graphs in float16 are computed by torch as well: a CPU's runtime computes much of them in float32, and would not
    find an overflow that a GPU has. It raises OptionError.
    """
    model, _processor = load_exported(folder)
    run = torch_logits(model)
    if not any(folder.rglob("*_fp16.*")):
        return run
    run_in_half = torch_logits(copy.deepcopy(source.model).half())

    def logits(case: ComparisonCase) -> torch.Tensor:
        try:
            run_in_half(case)
        except OptionError as error:
            raise OptionError(error.what, "pass `--dtype float32`") from None
        return run(case)

    return logits
