"""What training holds in memory: activations that are recomputed, what a step will need, and what to do when it is out.

Knows the modules that hold the most, and no settings beyond the flags' names that its advice needs.

Shapes: B pictures of a batch, H and W the model's picture size, T ids of the longest target.
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

from florence2.errors import UserError
from florence2.model.adapter.quantized import shapes_alone

GIB = 2**30
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
class Footprint:
    """What training is expected to hold, in bytes."""

    weights: int
    learning: int
    activations: int

    @property
    def total(self) -> int:
        """Add everything up."""
        return self.weights + self.learning + self.activations


def expect(model: nn.Module, size: tuple[int, int], batch: int, dtype: torch.dtype, recompute: bool) -> Footprint:
    """Estimate what a step holds, from shapes alone; `size` is (height, width) of a picture.

    Gradients and two moments of an Adam are counted for what is trained. Activations are those of the vision tower,
    counted by running it without data, and a share for the language half.
    """
    trained = sum(w.numel() for w in model.parameters() if w.requires_grad)
    weights = sum(w.numel() * w.element_size() for w in model.parameters())
    kept = vision_activations(model, size, dtype, recompute) if trained else 0
    return Footprint(weights, trained * 12, int(batch * kept * 1.25))


def vision_activations(model: nn.Module, size: tuple[int, int], dtype: torch.dtype, recompute: bool) -> int:
    """Count the bytes that the vision tower keeps for the backward pass of one picture, without computing it."""
    tower = next(m for name, m in model.named_modules() if name.endswith("vision_tower"))
    blocks = [b for b in tower.modules() if isinstance(b, VISION_BLOCKS)]
    if not any(w.requires_grad for w in tower.parameters()):
        return 0
    held: dict[nn.Module, int] = {}
    hooks = [block.register_forward_hook(partial(_note, held)) for block in blocks]
    try:
        _run_without_data(tower, size)
    finally:
        for hook in hooks:
            hook.remove()
    bytes_each = torch.finfo(dtype).bits // 8
    # A half block keeps about this many tensors of its own size: norms, qkv, attention, the four times wider MLP, and
    # with LoRA what its dropout lets through in front of each layer. Counted with `saved_tensors_hooks` on the base.
    kept = 34 if any(".lora_" in name for name, _ in tower.named_parameters()) else 24
    if recompute:
        return (sum(held.values()) + kept * max(held.values())) * bytes_each
    return kept * sum(held.values()) * bytes_each


def _note(held: dict[nn.Module, int], block: nn.Module, _: Any, out_BCHW: torch.Tensor) -> None:
    held[block] = out_BCHW.numel()


def _run_without_data(tower: nn.Module, size: tuple[int, int]) -> None:
    state = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in (*tower.named_parameters(), *tower.named_buffers())
    }
    pixels_BCHW = torch.empty(1, 3, *size, device="meta")
    with torch.no_grad(), shapes_alone(tower):
        torch.func.functional_call(tower, state, (pixels_BCHW,))


def peak(device: torch.device) -> int:
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
def advice(batch: int, recomputing: bool) -> Iterator[None]:
    """Turn running out of memory into one line that names the flags that help."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _is_out_of_memory(error):
            raise
        flags = [] if recomputing else ["`--gradient_checkpointing`"]
        if batch > 1:
            flags.append(f"`--batch_size {batch // 2} --gradient_accumulation_steps 2`")
        flags += ["`--dtype bfloat16`", "`--freeze vision`"]
        raise UserError(f"out of memory at batch size {batch}", f"try {', '.join(flags)}") from error


def _is_out_of_memory(error: RuntimeError) -> bool:
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in said or "can't allocate memory" in said
