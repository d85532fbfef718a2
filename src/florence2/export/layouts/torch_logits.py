"""The logits of an export that torch runs, in the dtype of its weights; an overflow is found where it begins."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from florence2.errors import CheckpointError, OptionError
from florence2.export.comparison import ComparisonCase, LogitsFn
from florence2.export.export_source import ExportSource
from florence2.model.storage import legacy_layout as legacy

_VOCABULARY = (legacy.SHARED, *legacy.TIED, legacy.HEAD)


def torch_logits(model: Any) -> LogitsFn:
    """Return the function that computes a model's logits; an overflow raises OptionError with the module's name."""
    dtype = model.dtype

    @torch.inference_mode()
    def logits(case: ComparisonCase) -> Tensor:
        pixel_values = case.pixel_values.to(dtype)
        with _overflow_check(model) as overflows:
            result: Tensor = model(
                pixel_values=pixel_values, input_ids=case.input_ids, decoder_input_ids=case.decoder_input_ids
            ).logits
        if overflows:
            name = str(dtype).removeprefix("torch.")
            what = f"this model overflows in {name}: `{overflows[0]}` is not finite for `{case.image}`"
            raise OptionError(what, "pass `--dtype bfloat16` or `--dtype float32`")
        return result

    return logits


def require_equal_weights(model: Any, source: ExportSource, num_rows: int | None = None) -> None:
    """Raise CheckpointError if a weight of a reloaded model is not that of its source, rounded to its dtype.

    `num_rows` limits the comparison of the embedding and of the output layer.
    """
    reloaded = model.state_dict()
    for name, tensor in source.model.state_dict().items():
        rows = slice(num_rows if name in _VOCABULARY else None)
        if not torch.equal(reloaded[name][rows], tensor[rows].to(reloaded[name].dtype)):
            raise CheckpointError(f"the export changed the weight `{name}`", "report this with the command")


@contextmanager
def _overflow_check(model: nn.Module) -> Iterator[list[str]]:
    """Collect the names of the modules whose outputs are not finite, in the order of the computation."""
    overflows: list[str] = []

    def check(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                overflows.append(name)

        return hook

    handles = [module.register_forward_hook(check(name)) for name, module in model.named_modules()]
    try:
        yield overflows
    finally:
        for handle in handles:
            handle.remove()
