"""Memory of training: gradient checkpointing, estimates, device queries, errors when memory runs out.

Shapes: B images of a batch, H and W the model's image size.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.models.florence2.modeling_florence2 import Florence2VisionChannelBlock, Florence2VisionSpatialBlock

from florence2.devices import is_out_of_memory
from florence2.distributed import local_world_size
from florence2.errors import DeviceMemoryError
from florence2.model.adapter.quantized import without_dequantization
from florence2.model.patches import replace_forward
from florence2.system import free_memory
from florence2.training.performance.memory_estimate import BatchShapes, estimate_step_memory

GIB = 2**30
# The CPU allocator fragments memory: with batches of 32 the bundled model holds 1.15 GiB for 0.83 GiB in use.
# Recomputed activations are small and fragment more: at base size with batches of 2, 4.5 GiB for an estimate of 3.5.
FRAGMENTATION = 1.4
VISION_BLOCKS = (Florence2VisionSpatialBlock, Florence2VisionChannelBlock)


def checkpoint_activations(model: nn.Module) -> None:
    """Recompute activations in the backward pass, in the language component and in the vision tower.

    transformers covers the language component only, and the vision blocks hold most of the activations. Recomputation
    restores the random state, so drop-path drops the same paths.
    """
    pretrained: Any = model
    if hasattr(pretrained, "activation_checkpointing_enable"):
        pretrained.activation_checkpointing_enable({"use_reentrant": False})
    else:
        pretrained.gradient_checkpointing_enable({"use_reentrant": False})
    for block in model.modules():
        if isinstance(block, VISION_BLOCKS) and any(weight.requires_grad for weight in block.parameters()):
            replace_forward(block, partial(_checkpointed_forward, block, block.forward))


def _checkpointed_forward(block: nn.Module, forward: Any, hidden_BCHW: torch.Tensor) -> Any:
    if block.training and torch.is_grad_enabled():
        return checkpoint(forward, hidden_BCHW, use_reentrant=False)
    return forward(hidden_BCHW)


@dataclass(frozen=True)
class MemoryEstimate:
    """Expected memory of training in bytes: allocated already, optimizer state, activations and gradients of a step."""

    allocated: int
    optimizer: int
    activations: int

    @property
    def more(self) -> int:
        """Return the bytes that are not allocated yet."""
        return self.optimizer + self.activations

    @property
    def total(self) -> int:
        """Return the sum."""
        return self.allocated + self.more


def estimate_memory(model: nn.Module, shapes: BatchShapes, dtype: torch.dtype) -> MemoryEstimate:
    """Estimate the memory of a training step with a batch of these shapes and the optimizer state of Adam."""
    device = next(model.parameters()).device
    optimizer = 8 * sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    with without_dequantization(model):
        activations = estimate_step_memory(model, shapes, dtype)
    fragmentation = FRAGMENTATION if device.type == "cpu" else 1
    return MemoryEstimate(allocated_memory(device), optimizer, int(activations * fragmentation))


def allocated_memory(device: torch.device) -> int:
    """Return the allocated bytes of a GPU, or the resident bytes of the process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    import psutil  # comes with accelerate

    return int(psutil.Process().memory_info().rss)


def free_device_memory(device: torch.device) -> int:
    """Return the bytes that this process may still allocate; processes on one machine share those of a CPU equally."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return free_memory() // local_world_size()


def memory_warning(estimate: MemoryEstimate, device: torch.device) -> str:
    """Return a warning to append to an estimate, if it exceeds the free memory."""
    free = free_device_memory(device)
    return "" if estimate.more <= free else f", {estimate.more / GIB:.1f} more than now, and {free / GIB:.1f} are free"


def peak_memory(device: torch.device) -> int:
    """Return the peak of allocated bytes of a GPU, or of resident bytes of the process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        import psutil

        memory = psutil.Process().memory_info()
        return int(getattr(memory, "peak_wset", memory.rss))
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


@contextmanager
def explain_out_of_memory(batch_size: int, checkpoints_activations: bool) -> Iterator[None]:
    """Translate out-of-memory errors to one that names the flags that help."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        flags = [] if checkpoints_activations else ["`--gradient_checkpointing`"]
        if batch_size > 1:
            flags.append(f"`--batch_size {batch_size // 2} --gradient_accumulation_steps 2`")
        flags += ["`--dtype bfloat16`", "`--freeze vision`"]
        raise DeviceMemoryError(f"out of memory at batch size {batch_size}", f"try {', '.join(flags)}") from error
