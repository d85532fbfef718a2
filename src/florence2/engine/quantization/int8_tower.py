"""The vision tower in 8 bits on a CPU: its linear layers multiply bytes, its attention computes in bfloat16.

Window attention moves bytes instead of numbers when it cuts an image into windows, and computes attention as two
batched products.

Shapes: B images, C channels, H x W positions, M windows of T positions, E channels of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from florence2.engine.encoder.window_attention import attend_heads, by_window
from florence2.engine.quantization.int8_linear import (
    GELU_MINIMUM,
    Int8Linear,
    QuantizedInput,
    quantize_in_place,
    quantize_input,
)

MAX_ELEMENTS = 2**22  # between two linear layers: 16 MiB of float32 stay in the cache


class Int8FeedForward(nn.Module):
    """Two linear layers with an activation between them; GELU is part of the first."""

    def __init__(self, ffn: Any) -> None:
        super().__init__()
        activation = getattr(ffn, "activation_fn", F.gelu)
        sample = torch.linspace(-6, 6, 49)
        is_gelu = torch.allclose(activation(sample), F.gelu(sample), atol=1e-6)
        self.fc1, self.fc2 = Int8Linear(ffn.fc1, gelu=is_gelu), Int8Linear(ffn.fc2)
        self._activation = None if is_gelu else activation

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute both layers, a part of the positions at a time; each part has scales of its own."""
        rows = hidden.flatten(0, -2)
        parts = math.ceil(len(rows) * self.fc1.out_features / MAX_ELEMENTS)
        outputs = [self._forward(part) for part in rows.chunk(parts)]
        return torch.cat(outputs).view(hidden.shape)

    def _forward(self, rows: Tensor) -> Tensor:
        inner = self.fc1.int8_weight.multiply(quantize_input(rows), torch.float32)
        if self._activation is None:
            quantized = quantize_in_place(inner, GELU_MINIMUM)
        else:
            quantized = quantize_input(self._activation(inner))
        return self.fc2.int8_weight.multiply(quantized, rows.dtype)


class Int8WindowAttention(nn.Module):
    """Attention between the positions of each window of an image."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.num_heads, self.window_size = attention.num_heads, attention.window_size
        self.qkv, self.proj = Int8Linear(attention.qkv), Int8Linear(attention.proj)
        self.qkv.int8_weight.scale_outputs(slice(attention.proj.in_features), attention.scale)

    def forward(self, hidden_BHWC: Tensor) -> Tensor:
        """Compute attention, (B, H, W, C) to (B, N, C)."""
        levels_BHWC, scale, zero_point = quantize_input(hidden_BHWC)

        def attend_windows(levels_MTC: Tensor) -> Tensor:
            qkv_MTC = self.qkv.int8_weight.multiply(QuantizedInput(levels_MTC, scale, zero_point), hidden_BHWC.dtype)
            attended: Tensor = self.proj(attend_heads(qkv_MTC, self.num_heads))
            return attended

        return by_window(levels_BHWC, self.window_size, attend_windows, padding=zero_point)


def quantize_tower(tower: Any) -> None:
    """Replace the layers of a vision tower by layers in 8 bits; the weights are replaced for good."""
    for module in list(tower.modules()):
        if hasattr(module, "ffn"):
            module.ffn = Int8FeedForward(module.ffn)
        if hasattr(module, "channel_attn"):
            attention = module.channel_attn  # of which `gram_channel_attention.py` reads the weights
            attention.qkv = Int8Linear(attention.qkv, with_weight=True)
            attention.proj = Int8Linear(attention.proj, with_weight=True)
        if hasattr(module, "window_attn"):
            module.window_attn = Int8WindowAttention(module.window_attn)
