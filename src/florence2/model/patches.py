"""Replacement of foreign methods and classes on single instances.

A replacement never touches a foreign class, so other models in the process keep their own methods. These are all
replacements in the project:

| what | where | why | undone by |
|---|---|---|---|
| `Florence2VisionChannelAttention.forward` | `engine/encoder/gram_channel_attention.py` | fewer products in half precision | `restore_attention` |
| `Florence2VisionWindowAttention.forward` | `engine/encoder/window_attention.py` | faster products in bfloat16 on a CPU | `restore_attention` |
| linear layers of tower and encoder | `engine/quantization/quantize_model.py` | products in 8 bits | nothing; the model stays in 8 bits |
| `Florence2Model.forward` | `training/performance/feature_forward.py` | takes features for pixels, never waits for a GPU | `restore_forward` |
| `forward` of the vision blocks | `training/performance/memory.py` | recomputes activations in the backward pass | `restore_forward` |
| `forward` of `Linear4bit` | `model/adapter/quantized.py` | unpacks no weights while memory is estimated | the end of its context |
| class of peft's LoRA `Linear` | `training/performance/lora_linear.py` | fuses the LoRA branch | `restore_class` |
| dropout rates and attention of BART | `training/performance/cpu_dropout.py` | faster dropout on a CPU, in hooks | nothing; eval mode is not affected |
| input of the output layer | `training/trainer.py` | computes logits at label positions only, in a hook | the end of its context |
| attention implementation of the vision tower | `training/prepare_model.py` | torch's fused kernels are missing or slower | nothing; results are equal but for rounding |
| gradients of the weights | `training/performance/cuda_graph_step.py` | a CUDA graph writes to fixed addresses | `zero_grad` |
"""  # noqa: E501

from collections.abc import Callable
from typing import Any

from torch import nn


def replace_forward(module: Any, forward: Callable[..., Any]) -> None:
    """Replace the forward of one module; its hooks and its class do not change."""
    module.forward = forward


def restore_forward(module: nn.Module) -> None:
    """Remove the replacement of a module's forward, if there is one: its class provides the forward again."""
    module.__dict__.pop("forward", None)


def replace_class(module: Any, subclass: type[nn.Module]) -> None:
    """Replace the class of one module by a direct subclass, which overrides methods and adds no state."""
    if subclass.__base__ is not type(module):
        raise TypeError(f"{subclass.__name__} is no direct subclass of {type(module).__name__}")
    module.__class__ = subclass


def restore_class(module: Any, subclass: type[nn.Module]) -> None:
    """Give a module its own class back, if `replace_class` has replaced it by this subclass."""
    if type(module) is subclass:
        module.__class__ = subclass.__base__  # type: ignore[assignment]
