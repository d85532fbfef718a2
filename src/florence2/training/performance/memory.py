"""What training holds in memory: activations that are recomputed, what a step will need, and what to do when it is out.

Knows the modules that hold the most, and no settings beyond the flags' names that its advice needs.

Shapes: B pictures of a batch, H and W the model's picture size.
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

from florence2.distributed import local_world_size
from florence2.errors import UserError
from florence2.model.adapter.quantized import without_dequantization
from florence2.system import free_memory
from florence2.training.performance.memory_estimate import BatchShapes, estimate_step_memory

GIB = 2**30
# A CPU's allocator holds pieces that fit nothing: measured on the bundled model with batches of 32, 1.15 GiB for the
# .83 that were in use. With recomputed activations, which are small, it may hold more: at base size, 768 x 768 and
# batches of 2, 4.5 GiB where 3.5 are expected.
FRAGMENTATION = 1.4
OUT = ("out of memory", "can't allocate memory", "not enough memory", "could not create a memory object")
VISION_BLOCKS = (Florence2VisionSpatialBlock, Florence2VisionChannelBlock)


def checkpoint_activations(model: nn.Module) -> None:
    """Recompute activations in the backward pass, in the language half and in the vision tower.

    transformers covers the language half alone; the vision blocks hold most of what a step keeps. Each half of a
    block is one piece; the random numbers of drop-path are drawn again as they were.
    """
    language: Any = model
    if hasattr(language, "activation_checkpointing_enable"):
        language.activation_checkpointing_enable({"use_reentrant": False})
    else:
        language.gradient_checkpointing_enable({"use_reentrant": False})
    for block in model.modules():
        if isinstance(block, VISION_BLOCKS) and any(weight.requires_grad for weight in block.parameters()):
            block.forward = partial(_recomputed, block, block.forward)


def _recomputed(block: nn.Module, forward: Any, hidden_BCHW: torch.Tensor) -> Any:
    if block.training and torch.is_grad_enabled():
        return checkpoint(forward, hidden_BCHW, use_reentrant=False)
    return forward(hidden_BCHW)


@dataclass(frozen=True)
class MemoryEstimate:
    """What training is expected to hold, in bytes: what there is already, the optimizer's state, and a step."""

    allocated: int
    optimizer: int
    activations: int

    @property
    def more(self) -> int:
        """Give what is not held yet."""
        return self.optimizer + self.activations

    @property
    def total(self) -> int:
        """Add everything up."""
        return self.allocated + self.more


def estimate_memory(learner: nn.Module, shapes: BatchShapes, dtype: torch.dtype) -> MemoryEstimate:
    """Say what a step of these shapes will hold; two moments of an Adam are counted for what is trained."""
    device = next(learner.parameters()).device
    state = 8 * sum(weight.numel() for weight in learner.parameters() if weight.requires_grad)
    with without_dequantization(learner):
        step = estimate_step_memory(learner, shapes, dtype)
    return MemoryEstimate(allocated_memory(device), state, int(step * (FRAGMENTATION if device.type == "cpu" else 1)))


def allocated_memory(device: torch.device) -> int:
    """Return the memory that is held now, in bytes: of the GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    import psutil  # comes with accelerate

    return int(psutil.Process().memory_info().rss)


def free_device_memory(device: torch.device) -> int:
    """Return the memory that this process may still take; processes on one machine share what a CPU has."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return free_memory() // local_world_size()


def memory_warning(need: MemoryEstimate, device: torch.device) -> str:
    """Warn, behind what is said of a footprint, where less is free than it needs."""
    room = free_device_memory(device)
    return "" if need.more <= room else f", {need.more / GIB:.1f} more than now, and {room / GIB:.1f} are free"


def peak_memory(device: torch.device) -> int:
    """Return the most memory that was held so far, in bytes: of the GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


@contextmanager
def explain_out_of_memory(batch: int, recomputing: bool) -> Iterator[None]:
    """Turn running out of memory into one line that names the flags that help."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        flags = [] if recomputing else ["`--gradient_checkpointing`"]
        if batch > 1:
            flags.append(f"`--batch_size {batch // 2} --gradient_accumulation_steps 2`")
        flags += ["`--dtype bfloat16`", "`--freeze vision`"]
        raise UserError(f"out of memory at batch size {batch}", f"try {', '.join(flags)}") from error


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell from its words whether an error means that memory has run out, of a GPU, in C or in oneDNN."""
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(words in said for words in OUT)
