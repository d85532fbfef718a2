"""A base in 4 bits for LoRA training (QLoRA): bitsandbytes' nf4 with double quantization, computed in half precision.

Only the matrices of linear layers are quantized. The output layer is tied to the embedding and is not, nor are
convolutions, norms and embeddings. Quantized weights cannot be trained or saved; the adapter can.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from florence2.errors import MissingPackageError, UserError

UNQUANTIZED_MODULE = "lm_head"


def quantize_weights(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Quantize a model's linear layers in place and move the model to a device."""
    check_quantization_available(device)
    compute_dtype = torch.bfloat16 if dtype == torch.float32 else dtype
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and name != UNQUANTIZED_MODULE:
            model.set_submodule(name, _quantized_linear(module, compute_dtype))
    model.to(device)
    flagged: Any = model
    flagged.is_loaded_in_4bit = True  # peft reads this attribute


def check_quantization_available(device: torch.device) -> None:
    """Raise UserError where the package is missing or the device has no kernel for quantized layers."""
    if find_spec("bitsandbytes") is None:
        raise MissingPackageError(
            "`--quantize` needs the package bitsandbytes", "run `pip install 'florence2[quantize]'`"
        )
    try:
        layer = _quantized_linear(nn.Linear(64, 64), torch.bfloat16).to(device)
        layer(torch.zeros(1, 64, device=device))
    except Exception as error:  # without a kernel bitsandbytes raises various types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"`--quantize` cannot run on {device}: {reason}", "remove it, or pass `--device`") from error


def num_elements(weight: torch.Tensor) -> int:
    """Return the number of elements of a tensor, quantized or not."""
    quant_state = getattr(weight, "quant_state", None)
    return weight.numel() if quant_state is None else int(quant_state.shape.numel())


@contextmanager
def without_dequantization(model: nn.Module) -> Iterator[None]:
    """Replace the forward of quantized layers by one of the same memory that dequantizes nothing, for fake tensors."""
    layers: list[Any] = [module for module in model.modules() if _is_quantized(module)]
    for layer in layers:
        # One element expanded to the weight's shape: gradients pass through it, and it needs no memory.
        layer.forward = lambda x, size=(layer.out_features, layer.in_features): functional.linear(
            x, x.new_empty(1, 1).expand(size)
        )
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _is_quantized(module: nn.Module) -> bool:
    """Return whether a layer dequantizes: bitsandbytes' layer or peft's DoRA wrapper of the same name, not others."""
    dequantizes = type(module).__module__.startswith("bitsandbytes.") or bool(
        getattr(module, "lora_magnitude_vector", ())
    )
    return type(module).__name__ == "Linear4bit" and dequantizes


def _quantized_linear(layer: nn.Linear, compute_dtype: torch.dtype) -> nn.Module:
    from bitsandbytes.nn import Linear4bit, Params4bit

    size, bias = (layer.in_features, layer.out_features), layer.bias is not None
    quantized: Any = Linear4bit(*size, bias=bias, compute_dtype=compute_dtype, quant_type="nf4", device="meta")
    quantized.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True)
    quantized.bias = layer.bias
    # Otherwise a forward without gradients repacks the matrix on some CPUs, with coarser scales, for training too.
    quantized.support_avx512bf16_for_cpu = False
    module: nn.Module = quantized
    return module
