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

from florence2.engine.int8.int8_linear import Int8Linear, QuantizedInput, quantize_input

MAX_EXPONENT = 60.0  # exp of it, times a row of values, is far from the limits of bfloat16 and float32
MAX_ELEMENTS = 2**23  # between two linear layers: 16 MiB of bfloat16 stay in the cache


class Int8FeedForward(nn.Module):
    """Two linear layers with an activation between them; GELU is part of the first."""

    def __init__(self, ffn: Any) -> None:
        super().__init__()
        activation = getattr(ffn, "activation_fn", F.gelu)
        sample = torch.linspace(-6, 6, 49)
        is_gelu = torch.allclose(activation(sample), F.gelu(sample), atol=1e-6)
        self.fc1, self.fc2 = Int8Linear(ffn.fc1, gelu=is_gelu), Int8Linear(ffn.fc2)
        self._activation = nn.Identity() if is_gelu else activation

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute both layers, a part of the positions at a time; each part has scales of its own."""
        rows = hidden.flatten(0, -2)
        parts = math.ceil(len(rows) * self.fc1.out_features / MAX_ELEMENTS)
        outputs = [self._forward(part) for part in rows.chunk(parts)]
        return torch.cat(outputs).view(hidden.shape)

    def _forward(self, rows: Tensor) -> Tensor:
        inner = self._activation(self.fc1.int8_weight.multiply(quantize_input(rows), torch.float32))
        return self.fc2.int8_weight.multiply(quantize_input(inner), rows.dtype)


def attend(query_XTE: Tensor, key_XTE: Tensor, value_XTE: Tensor) -> Tensor:
    """Compute attention of queries that are scaled, as two batched products."""
    scores_XTT = torch.bmm(query_XTE, key_XTE.mT)
    lowest, highest = torch.aminmax(scores_XTT)
    if max(-float(lowest), float(highest)) > MAX_EXPONENT:
        return torch.bmm(scores_XTT.softmax(-1), value_XTE)
    # The exponentials are finite and not zero without the subtraction of the maximum of each row, which costs more
    # than all else here.
    weights_XTT = scores_XTT.exp_()
    return torch.bmm(weights_XTT, value_XTE) / weights_XTT.sum(-1, keepdim=True)


class Int8WindowAttention(nn.Module):
    """Attention between the positions of each window of an image."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.num_heads, self.window_size = attention.num_heads, attention.window_size
        self.qkv, self.proj = Int8Linear(attention.qkv), Int8Linear(attention.proj)
        self.qkv.int8_weight.scale_outputs(slice(attention.proj.in_features), attention.scale)

    def forward(self, hidden_BHWC: Tensor) -> Tensor:
        """Compute attention, (B, H, W, C) to (B, N, C)."""
        batch, height, width, dim = hidden_BHWC.shape
        size = self.window_size
        levels_BHWC, scale, zero_point = quantize_input(hidden_BHWC)
        bottom, right = -height % size, -width % size
        if bottom or right:
            levels_BHWC = F.pad(levels_BHWC, (0, 0, 0, right, 0, bottom), value=zero_point)
        rows, columns = (height + bottom) // size, (width + right) // size
        windows = levels_BHWC.view(batch, rows, size, columns, size, dim).permute(0, 1, 3, 2, 4, 5)
        quantized = QuantizedInput(windows.reshape(-1, size * size, dim), scale, zero_point)
        windows_MTC: Tensor = self.proj(self._attend(self.qkv.int8_weight.multiply(quantized, hidden_BHWC.dtype)))
        windows = windows_MTC.view(batch, rows, columns, size, size, dim).permute(0, 1, 3, 2, 4, 5)
        merged = windows.reshape(batch, rows * size, columns * size, dim)[:, :height, :width]
        return merged.reshape(batch, height * width, dim)

    def _attend(self, qkv_MTC: Tensor) -> Tensor:
        num_windows, positions, dim = qkv_MTC.shape
        parts = qkv_MTC.view(num_windows, positions, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts.reshape(3, num_windows * self.num_heads, positions, -1)
        attended = attend(query, key, value).view(num_windows, self.num_heads, positions, -1)
        return attended.transpose(1, 2).reshape(num_windows, positions, dim // 3)


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
