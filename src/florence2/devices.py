"""The device and the dtype of a run: what the user chose, or what suits the machine. Knows no model."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from florence2.errors import OptionError

LARGE_MODEL_PARAMETERS = 100_000_000
OUT_OF_MEMORY_MESSAGES = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "could not create a memory object",
)
NO_CODE_MEMORY_MESSAGE = "could not create a primitive"  # of oneDNN; for what it lacks, it says more
INT8, FP8 = "int8", "fp8"
FP8_CAPABILITY = (8, 9)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(device: torch.device | str | None = None) -> torch.device:
    """Return the chosen device, or the best available one: cuda, then mps, then cpu."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu")
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise OptionError(f"device `{device}` cannot be used: {reason}", "pass `cpu`, `cuda` or `mps`") from None
    return device


def gpu_memory() -> str:
    """Return the memory that this process has reserved on its GPU, such as `3.1 GiB`; "" without a GPU in use."""
    is_in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return f"{torch.cuda.memory_reserved() / 2**30:.1f} GiB" if is_in_use else ""


def local_device(device: str | None, local_rank: int) -> str | None:
    """Return the device that the user chose, or the GPU whose number is the rank of this process on its machine."""
    return f"cuda:{local_rank}" if device is None and torch.cuda.device_count() > local_rank else device


def training_dtype(dtype: torch.dtype | str | None, device: torch.device, num_parameters: int = 0) -> torch.dtype:
    """Return the chosen dtype, or the default for training: bfloat16 on a GPU, else float16; on a CPU float32.

    A model of at least 100 million parameters is trained in bfloat16 on a CPU with native support, too.
    """
    chosen = _parse_dtype(dtype)
    if chosen is not None:
        return chosen
    if device.type == "cpu":
        is_large = num_parameters >= LARGE_MODEL_PARAMETERS
        return torch.bfloat16 if is_large and has_bfloat16(device) else torch.float32
    return torch.bfloat16 if has_bfloat16(device) else torch.float16


def depends_on_model_size(dtype: torch.dtype | str | None, device: torch.device) -> bool:
    """Return whether the default dtype for training depends on the number of parameters."""
    return _parse_dtype(dtype) is None and device.type == "cpu" and has_bfloat16(device)


def inference_dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    """Return the chosen dtype, or the default for inference: as for training, but bfloat16 on a CPU that supports it.

    Such a CPU predicts twice as fast in bfloat16. `int8` and `fp8` are refused where no unit multiplies them, and
    elsewhere they are the default: the dtype of all that is not multiplied in 8 bits.
    """
    if dtype == INT8:
        _require_int8(device)
    if dtype == FP8:
        _require_fp8(device)
    chosen = None if is_8_bit(dtype) else _parse_dtype(dtype)
    if chosen is None and device.type == "cpu" and has_bfloat16(device):
        return torch.bfloat16
    return training_dtype(chosen, device)


def has_bfloat16(device: torch.device) -> bool:
    """Return whether a device has native bfloat16 support: AVX-512 CPUs with bf16 or AMX, most GPUs since 2020."""
    if device.type == "cpu":
        units = torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported
        return any(has_unit() for has_unit in units)  # type: ignore[no-untyped-call]
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def has_slow_fused_attention(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether torch's fused attention of small windows is slower than its products: bfloat16, CPUs without AMX.

    A rule and no measurement, because both round differently, and a resumed run has to compute as before.
    """
    has_amx = torch.cpu._is_amx_tile_supported()  # type: ignore[no-untyped-call]
    return device.type == "cpu" and dtype == torch.bfloat16 and not has_amx


def _require_int8(device: torch.device) -> None:
    """Refuse int8 where its products are not faster than those of the default dtype."""
    hint = "remove `--dtype`; bfloat16 or float16 is the default"
    if device.type != "cpu":
        raise OptionError(f"`--dtype int8` runs on a CPU, and the device is `{device}`", hint)
    if not torch.cpu._is_vnni_supported():  # type: ignore[no-untyped-call]
        what = "`--dtype int8` needs a CPU with AVX-512 VNNI, which this one does not have: it would be no faster"
        raise OptionError(what, "remove `--dtype`; the default is what this CPU is fastest in")


def _require_fp8(device: torch.device) -> None:
    """Refuse fp8 where no kernel multiplies it."""
    hint = "remove `--dtype`" + ("; `--dtype int8` is for CPUs" if device.type == "cpu" else "")
    if device.type != "cuda":
        raise OptionError(f"`--dtype fp8` runs on an NVIDIA GPU, and the device is `{device}`", hint)
    capability = torch.cuda.get_device_capability(device)
    if capability < FP8_CAPABILITY:
        found = ".".join(map(str, capability))
        raise OptionError(f"`--dtype fp8` needs compute capability 8.9 (RTX 4090, L4, H100), not {found}", hint)


def is_8_bit(dtype: torch.dtype | str | None) -> bool:
    """Return whether a dtype is a precision of products in 8 bits, which no tensor of a model has."""
    return dtype in (INT8, FP8)


def use_device(device: torch.device) -> AbstractContextManager[Any]:
    """Make a GPU the current one, on which streams, events and graphs are created; torch's default is the first."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of a GPU, of Python, of C or of oneDNN means that memory has run out."""
    message = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError)
        and (message == NO_CODE_MEMORY_MESSAGE or any(words in message for words in OUT_OF_MEMORY_MESSAGES))
    )


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a host tensor to a device; the host does not wait for the earlier work of a GPU."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # a pinned tensor is not copied again


def dtype_warning(dtype: torch.dtype, device: torch.device) -> str:
    """Warn of a half precision that a CPU emulates; empty where nothing is wrong."""
    if device.type != "cpu" or dtype == torch.float32 or (dtype == torch.bfloat16 and has_bfloat16(device)):
        return ""
    name = str(dtype)[6:]
    return f"note: this CPU has no native {name} support and is several times slower in it than with `--dtype float32`"


def _parse_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return the dtype of a name; None for `auto`."""
    if dtype is None or dtype == "auto":
        return None
    if isinstance(dtype, torch.dtype):
        return dtype
    if is_8_bit(dtype):
        what = f"`{dtype}` is a precision of predictions, and no dtype of a loaded model"
        raise OptionError(what, f'pass it to `florence2 predict` or to `florence2.Florence2(name, dtype="{dtype}")`')
    name = dtype.removeprefix("torch.")
    if name not in _DTYPES:
        raise OptionError(f"`{dtype}` is not a supported dtype", f"pass one of {', '.join(_DTYPES)}, auto")
    return _DTYPES[name]
