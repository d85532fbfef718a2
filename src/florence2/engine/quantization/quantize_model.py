"""The model in 8 bits: integers on a CPU, floating-point numbers on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from florence2.devices import INT8
from florence2.engine.quantization.fp8_linear import Fp8Linear, can_be_fp8
from florence2.engine.quantization.int8_linear import Int8Linear
from florence2.engine.quantization.int8_tower import quantize_tower


@torch.inference_mode()
def quantize_model(model: Any, precision: str) -> None:
    """Replace the linear layers of the vision tower and of the text encoder by layers in `int8` or `fp8`, for good.

    In int8 the engine's decoder quantizes its own copies of the weights; in fp8 it has the model's dtype. `precision`
    marks the model.
    """
    if getattr(model, "precision", None) is not None:
        return
    tower, encoder = model.model.vision_tower, model.get_encoder()
    if precision == INT8:
        quantize_tower(tower)
        _replace_linears(encoder, lambda linear: Int8Linear(linear, by_row=True))
    else:
        for module in [module for module in tower.modules() if hasattr(module, "channel_attn")]:
            # `gram_channel_attention.py` reads the weights
            _replace_linears(module.channel_attn, lambda linear: _fp8(linear, with_weight=True))
        for part in (tower, encoder):
            _replace_linears(part, _fp8)
    model.precision = precision


def _fp8(linear: nn.Linear, *, with_weight: bool = False) -> nn.Module:
    return Fp8Linear(linear, with_weight=with_weight) if can_be_fp8(linear) else linear


def _replace_linears(part: nn.Module, create: Callable[[nn.Linear], nn.Module]) -> None:
    for module in list(part.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, create(child))
