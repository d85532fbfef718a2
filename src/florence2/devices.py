"""Where the model runs and in which arithmetic: what the user asked for, or what suits the machine.

Knows no model.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from florence2.errors import UserError

LARGE_MODEL_PARAMETERS = 100_000_000  # weights
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(device: torch.device | str | None = None) -> torch.device:
    """Return the device asked for, or the best there is: cuda, then mps, then cpu."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu")
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"device `{device}` cannot be used: {reason}", "give `cpu`, `cuda` or `mps`") from None
    return device


def pick_dtype(dtype: torch.dtype | str | None, device: torch.device, *, learns: bool = True) -> torch.dtype:
    """Return the floating type asked for, or the one that suits the device.

    On a CPU that multiplies bfloat16 itself, answering takes half the time in it; learning stays in float32 there.
    """
    if isinstance(dtype, str) and dtype != "auto":
        name = dtype.removeprefix("torch.")
        if name not in _DTYPES:
            raise UserError(f"`{dtype}` is no floating type here", f"give one of {', '.join(_DTYPES)}, auto")
        return _DTYPES[name]
    if isinstance(dtype, torch.dtype):
        return dtype
    if device.type == "cpu":
        return torch.bfloat16 if not learns and has_bfloat16(device) else torch.float32
    return torch.bfloat16 if has_bfloat16(device) else torch.float16


def local_device(device: str | None, local_rank: int) -> str | None:
    """Return the device that the user chose, or the GPU whose number is the rank of this process on its machine."""
    return f"cuda:{local_rank}" if device is None and torch.cuda.device_count() > local_rank else device


def has_bfloat16(device: torch.device) -> bool:
    """Tell whether a device multiplies bfloat16 itself: an AVX-512 CPU with bf16 or AMX, most GPUs since 2020."""
    if device.type == "cpu":
        units = torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported
        return any(has_unit() for has_unit in units)  # type: ignore[no-untyped-call]
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def use_device(device: torch.device) -> AbstractContextManager[Any]:
    """Let a GPU be the one that streams, events and graphs are made on; torch's own choice is the first."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Give a tensor of the host's to a device; the host does not wait for a GPU to have done what came before."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # a pinned tensor is not copied again


def dtype_warning(dtype: torch.dtype, device: torch.device) -> str:
    """Warn of half precision that a CPU must emulate; empty where there is nothing to warn of."""
    if device.type != "cpu" or dtype == torch.float32 or (dtype == torch.bfloat16 and has_bfloat16(device)):
        return ""
    return f"note: this CPU has no {str(dtype)[6:]} unit and is several times slower in it than with `--dtype float32`"


def dtype_hint(dtype: torch.dtype, device: torch.device, weights: int) -> str:
    """Tell of half precision that a CPU multiplies itself, where a model is large enough to gain by it."""
    if device.type != "cpu" or dtype != torch.float32 or weights < LARGE_MODEL_PARAMETERS or not has_bfloat16(device):
        return ""
    return "note: this CPU multiplies bfloat16 itself, `--dtype bfloat16` takes little more than half of the time"
