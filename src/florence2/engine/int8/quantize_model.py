"""The model in 8 bits on a CPU that multiplies bytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from florence2.engine.int8.int8_linear import Int8Linear
from florence2.engine.int8.int8_tower import quantize_tower


@torch.inference_mode()
def quantize_model(model: Any) -> None:
    """Replace the linear layers of the vision tower and of the text encoder by layers in 8 bits, for good.

    The engine's decoder quantizes its own copies of the weights. `is_int8` marks the model.
    """
    if getattr(model, "is_int8", False):
        return
    quantize_tower(model.model.vision_tower)
    for module in list(model.get_encoder().modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child, by_row=True))
    model.is_int8 = True
