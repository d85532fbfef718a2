"""Adapters of a tiny model whose matrices are random, so that every one of them changes the outputs."""

from pathlib import Path
from typing import Any

import torch

from florence2.model.adapter.lora import add_lora, save_adapter
from tests.tiny import save_tiny, tiny_model


def trained_adapter(folder: Path, **lora: Any) -> Path:
    """Write `base`, a tiny model in transformers' layout, and `adapter`, a LoRA for it; return the adapter."""
    base = save_tiny(folder / "base")
    model, _ = tiny_model()
    model.config.name_or_path = str(base)
    wrapped = add_lora(model, **({"rank": 3, "alpha": 6} | lora))
    generator = torch.Generator().manual_seed(1)
    for weight in wrapped.parameters():
        if weight.requires_grad:
            weight.data += 0.2 * torch.randn(weight.shape, generator=generator)
    save_adapter(wrapped, folder / "adapter")
    return folder / "adapter"
