"""Linear layers with products of fp8 numbers on a GPU: weights are quantized once, inputs at every call.

A weight has one scale for each output and an input one for each row, so that no row depends on those beside it. Nothing
is calibrated, and nothing waits for the host. GPUs of compute capability 9.0 (H100, H200) apply both scales inside the
product; torch's kernels for others take one scale for a whole matrix, and the rest is multiplied afterwards.

Shapes: M outputs, K inputs, R rows; the input is (..., K).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

FORMAT = torch.float8_e4m3fn
HIGHEST = 448.0
MULTIPLE = 16  # torch's kernels need multiples of it for both sizes of a weight
CAPABILITY_WITH_SCALES = (9, 0)


class Fp8Linear(nn.Module):
    """A linear layer in fp8; `with_weight` retains the weight in its own dtype, for code that multiplies by it."""

    levels_MK: Tensor
    scale_1M: Tensor
    bias_M: Tensor | None
    one: Tensor

    def __init__(self, linear: Any, *, with_weight: bool = False) -> None:
        super().__init__()
        if with_weight:
            self.weight, self.bias = linear.weight, linear.bias
        device = linear.weight.device
        self.out_features, self.in_features = linear.weight.shape
        levels_MK, scale_M1 = quantize_rows_fp8(linear.weight.detach())
        self.register_buffer("levels_MK", levels_MK)
        self.register_buffer("scale_1M", scale_M1.T.contiguous())
        self.register_buffer("bias_M", None if linear.bias is None else linear.bias.detach().clone())
        self.register_buffer("one", torch.ones((), device=device))
        self._is_scaled_inside = (
            device.type != "cuda" or torch.cuda.get_device_capability(device) == CAPABILITY_WITH_SCALES
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Quantize the input, multiply, and add the bias."""
        levels_RK, scale_R1 = quantize_rows_fp8(hidden.reshape(-1, self.in_features))
        multiply = self._multiply_with_scales if self._is_scaled_inside else self._multiply
        return multiply(levels_RK, scale_R1, hidden.dtype).view(*hidden.shape[:-1], self.out_features)

    def _multiply_with_scales(self, levels_RK: Tensor, scale_R1: Tensor, dtype: torch.dtype) -> Tensor:
        scales = scale_R1, self.scale_1M
        return torch._scaled_mm(levels_RK, self.levels_MK.T, *scales, self.bias_M, out_dtype=dtype)

    def _multiply(self, levels_RK: Tensor, scale_R1: Tensor, dtype: torch.dtype) -> Tensor:
        product_RM = torch._scaled_mm(levels_RK, self.levels_MK.T, self.one, self.one, out_dtype=dtype)
        scaled_RM = product_RM * (scale_R1 * self.scale_1M)
        return (scaled_RM if self.bias_M is None else scaled_RM + self.bias_M).to(dtype)


def quantize_rows_fp8(matrix_RK: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize each row of a matrix to fp8; return the numbers and the scale of each row, (R, 1)."""
    numbers_RK = matrix_RK.float()
    scale_R1 = numbers_RK.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / HIGHEST
    return (numbers_RK / scale_R1).clamp(-HIGHEST, HIGHEST).to(FORMAT), scale_R1


def can_be_fp8(linear: nn.Linear) -> bool:
    """Return whether the kernels take the sizes of a layer."""
    return linear.in_features % MULTIPLE == 0 and linear.out_features % MULTIPLE == 0
