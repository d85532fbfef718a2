"""Window attention of the vision tower on a CPU, as two batched products with exponentials between them.

torch's fused attention is made for long rows of positions, and a window has 144. On a CPU with AVX-512 the products
take less than half of its time. A CPU with AMX multiplies faster inside the fused attention, which therefore stays.
The rule depends on the CPU alone, so that a run that is resumed computes as before.

Shapes: B images, C channels, H x W positions, M windows of T positions, X windows times heads, E channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from florence2.engine.encoder.attention_patch import AttentionPatch

MAX_EXPONENT = 60.0  # exp of it, times a row of values, is far from the limits of bfloat16 and float32


class WindowProducts(AttentionPatch):
    """The forward method of one window attention: (B, H, W, C) to (B, N, C)."""

    class_suffix = "WindowAttention"

    def __call__(self, hidden_BHWC: Tensor) -> Tensor:
        """Compute attention between the positions of each window."""
        if torch.compiler.is_compiling():  # the choice by the largest score breaks a compiled graph in two
            return self._plain(hidden_BHWC)  # type: ignore[no-any-return]
        attention = self._attention

        def attend_windows(windows_MTC: Tensor) -> Tensor:
            attended: Tensor = attention.proj(
                attend_heads(attention.qkv(windows_MTC), attention.num_heads, attention.scale)
            )
            return attended

        return by_window(hidden_BHWC, attention.window_size, attend_windows)


def by_window(image_BHWC: Tensor, size: int, attend_windows: Callable[[Tensor], Tensor], padding: int = 0) -> Tensor:
    """Cut images into windows, (M, T, C), compute their attention, and merge them, (B, N, C)."""
    batch, height, width, dim = image_BHWC.shape
    bottom, right = -height % size, -width % size
    if bottom or right:
        image_BHWC = F.pad(image_BHWC, (0, 0, 0, right, 0, bottom), value=padding)
    rows, columns = (height + bottom) // size, (width + right) // size
    windows = image_BHWC.view(batch, rows, size, columns, size, dim).permute(0, 1, 3, 2, 4, 5)
    windows_MTC = attend_windows(windows.reshape(-1, size * size, dim))
    merged = windows_MTC.view(batch, rows, columns, size, size, dim).permute(0, 1, 3, 2, 4, 5)
    return merged.reshape(batch, rows * size, columns * size, dim)[:, :height, :width].reshape(batch, -1, dim)


def attend_heads(qkv_MTC: Tensor, num_heads: int, scale: float = 1.0) -> Tensor:
    """Compute the attention of all heads, (M, T, 3 C) to (M, T, C)."""
    num_windows, positions, dim = qkv_MTC.shape
    parts = qkv_MTC.view(num_windows, positions, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = parts.reshape(3, num_windows * num_heads, positions, -1)
    attended = attend(query, key, value, scale).view(num_windows, num_heads, positions, -1)
    return attended.transpose(1, 2).reshape(num_windows, positions, dim // 3)


def attend(query_XTE: Tensor, key_XTE: Tensor, value_XTE: Tensor, scale: float = 1.0) -> Tensor:
    """Compute attention as two batched products."""
    scores_XTT = torch.baddbmm(query_XTE.new_empty(1), query_XTE, key_XTE.mT, beta=0, alpha=scale)
    lowest, highest = torch.aminmax(scores_XTT)
    if max(-float(lowest), float(highest)) > MAX_EXPONENT:
        return torch.bmm(scores_XTT.softmax(-1), value_XTE)
    # The exponentials are finite and not zero without the subtraction of the maximum of each row, which costs more
    # than all else here.
    weights_XTT = scores_XTT.exp_()
    return torch.bmm(weights_XTT, value_XTE) / weights_XTT.sum(-1, keepdim=True)
