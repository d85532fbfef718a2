"""A base in 4 bits, to put a LoRA on: bitsandbytes' nf4, its scales quantised once more, arithmetic in half precision.

Only the matrices of linear layers are packed. The output layer shares its matrix with the embedding and stays as it
is, and so do convolutions, norms and tables. What is packed cannot learn, nor be saved; the adapter on it can.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from florence2.errors import UserError

UNQUANTIZED_MODULE = "lm_head"


def quantize_weights(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Pack a model's matrices in place and move all of it to a device; UserError where that cannot be."""
    check_quantization_available(device)
    arithmetic = torch.bfloat16 if dtype == torch.float32 else dtype
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and name != UNQUANTIZED_MODULE:
            model.set_submodule(name, _packed(module, arithmetic))
    model.to(device)
    whole: Any = model
    whole.is_loaded_in_4bit = True  # peft asks this


def check_quantization_available(device: torch.device) -> None:
    """Refuse a machine on which packed matrices do not multiply."""
    if find_spec("bitsandbytes") is None:
        raise UserError("`--quantize` needs the package bitsandbytes", "run `pip install 'florence2[quantize]'`")
    try:
        layer = _packed(nn.Linear(64, 64), torch.bfloat16).to(device)
        layer(torch.zeros(1, 64, device=device))
    except Exception as error:  # whatever bitsandbytes raises where it has no kernel, it is the answer
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"`--quantize` cannot run on {device}: {reason}", "leave it out, or pass `--device`") from error


def num_elements(weight: torch.Tensor) -> int:
    """Count the numbers of a tensor, packed or not."""
    packed = getattr(weight, "quant_state", None)
    return weight.numel() if packed is None else int(packed.shape.numel())


@contextmanager
def without_dequantization(model: nn.Module) -> Iterator[None]:
    """Let packed layers keep what their result needs and unpack nothing, for a run without data."""
    packed: list[Any] = [module for module in model.modules() if _is_packed(module)]
    for layer in packed:
        # One number in the place of all weights: gradients pass through it, and it takes no memory that would count.
        layer.forward = lambda x, size=(layer.out_features, layer.in_features): functional.linear(
            x, x.new_empty(1, 1).expand(size)
        )
    try:
        yield
    finally:
        for layer in packed:
            del layer.forward


def _is_packed(module: nn.Module) -> bool:
    """Tell a packed layer from peft's wrapper of the same name; that of a DoRA counts, because it unpacks."""
    unpacks = type(module).__module__.startswith("bitsandbytes.") or bool(getattr(module, "lora_magnitude_vector", ()))
    return type(module).__name__ == "Linear4bit" and unpacks


def _packed(layer: nn.Linear, arithmetic: torch.dtype) -> nn.Module:
    from bitsandbytes.nn import Linear4bit, Params4bit

    size, bias = (layer.in_features, layer.out_features), layer.bias is not None
    made = Linear4bit(*size, bias=bias, compute_dtype=arithmetic, quant_type="nf4", device="meta")
    made.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True)
    made.bias = layer.bias
    # Else a look without gradients lays the matrix out anew on some CPUs, with coarser scales, and training goes on so.
    made.support_avx512bf16_for_cpu = False
    packed: nn.Module = made
    return packed
