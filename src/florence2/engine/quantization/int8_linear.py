"""Linear layers with 8-bit integer products on a CPU: weights are quantized once, inputs at every call.

A weight has one scale for each output. An input has one scale for all of its elements, between its own minimum and
maximum, or one for each row, so that a row does not depend on those beside it. Nothing is calibrated. Sums are exact in
32 bits; oneDNN applies scales, bias and GELU to them in float32, and the result has the dtype that is asked for.

Shapes: M outputs, K inputs, R rows; the input is (..., K).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

STEPS = 254  # one less than a byte has, because the zero point is rounded up
ROW_ZERO_POINT = 128
HIGHEST = 127
GELU_MINIMUM = -0.171
# From this float32 on, neighbours are 1 apart: an addition rounds to an integer, whose lowest byte is that of the bits.
INTEGERS = 2.0**23


class QuantizedInput(NamedTuple):
    """A tensor as bytes: `scale * (levels - zero_point)`."""

    levels: Tensor
    scale: float
    zero_point: int


class Int8Weight:
    """The weight of a linear layer in bytes; products with it have a bias and may have a GELU."""

    def __init__(self, weight_MK: Tensor, bias_M: Tensor | None = None, *, gelu: bool = False) -> None:
        levels_MK, self._scale_M = quantize_rows(weight_MK.detach())
        self._packed = torch.ops.onednn.qlinear_prepack(levels_MK, None)
        self._zero_points_M = torch.zeros(len(weight_MK), dtype=torch.int32)
        self._bias_M = None if bias_M is None else bias_M.detach().float().clone()
        self._activation = "gelu" if gelu else "none"

    def scale_outputs(self, outputs: slice, factor: float) -> None:
        """Multiply some outputs by a factor, at no cost."""
        self._scale_M[outputs] *= factor
        if self._bias_M is not None:
            self._bias_M[outputs] *= factor

    def multiply(self, quantized: QuantizedInput, dtype: torch.dtype) -> Tensor:
        """Multiply bytes by the weight, and add the bias; the output has `dtype`."""
        return self._product(quantized, self._bias_M, dtype)

    def multiply_rows(self, hidden: Tensor) -> Tensor:
        """Multiply an input with a scale of its own for each row."""
        limit = torch.finfo(torch.float32).tiny
        scale_R1 = hidden.abs().amax(-1, keepdim=True).float().clamp_(min=limit).div_(HIGHEST)
        levels = _lowest_bytes((hidden / scale_R1).add_(INTEGERS + ROW_ZERO_POINT))
        product = self._product(QuantizedInput(levels, 1.0, ROW_ZERO_POINT), None, torch.float32).mul_(scale_R1)
        return (product if self._bias_M is None else product.add_(self._bias_M)).to(hidden.dtype)

    def _product(self, quantized: QuantizedInput, bias_M: Tensor | None, dtype: torch.dtype) -> Tensor:
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            *quantized,
            *(self._packed, self._scale_M, self._zero_points_M, bias_M),
            *(1.0, 0, dtype, self._activation, [], "none"),
        )
        return product


class Int8Linear(nn.Module):
    """A linear layer in 8 bits, with one scale for the input, or one for each row.

    `with_weight` retains the weight in its own dtype, for code that multiplies by it in another way.
    """

    def __init__(self, linear: Any, *, gelu: bool = False, by_row: bool = False, with_weight: bool = False) -> None:
        super().__init__()
        if with_weight:
            self.weight, self.bias = linear.weight, linear.bias
        self.out_features, self.in_features = linear.weight.shape
        self.int8_weight, self._is_by_row = Int8Weight(linear.weight, linear.bias, gelu=gelu), by_row

    def forward(self, hidden: Tensor) -> Tensor:
        """Quantize the input and multiply."""
        if self._is_by_row:
            return self.int8_weight.multiply_rows(hidden)
        return self.int8_weight.multiply(quantize_input(hidden), hidden.dtype)


def quantize_rows(weight_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize each row of a weight to the integers from -127 to 127; return them and the scale of each row."""
    weight_MK = weight_MK.float()
    scale_M = weight_MK.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / HIGHEST
    return (weight_MK / scale_M.unsqueeze(1)).round().to(torch.int8), scale_M


def quantize_input(hidden: Tensor) -> QuantizedInput:
    """Quantize a tensor to bytes between its minimum and maximum; zero is one of the levels."""
    lowest, highest = (float(value) for value in torch.aminmax(hidden))
    return _quantize(hidden.to(torch.float32, copy=True), min(lowest, 0.0), max(highest, 0.0))


def quantize_in_place(numbers: Tensor, lowest: float) -> QuantizedInput:
    """Quantize a float32 tensor as `quantize_input` does, and overwrite it; no element is below `lowest`."""
    highest_bits = numbers.view(torch.int32).amax()  # positive numbers are in the order of their bits
    highest = float(highest_bits.view(torch.float32))
    if not highest > -lowest:
        return quantize_input(numbers)
    return _quantize(numbers, lowest, highest)


def _quantize(numbers: Tensor, lowest: float, highest: float) -> QuantizedInput:
    if not math.isfinite(highest - lowest):  # every product is NaN, too, and the image becomes an error
        return QuantizedInput(_lowest_bytes(numbers), math.nan, 0)
    # The factor is a float32 number, as torch multiplies by it.
    inverse = float(torch.tensor(STEPS / (highest - lowest or STEPS)))
    zero_point = math.ceil(-lowest * inverse)
    levels = torch.add(numbers.new_full((), INTEGERS + zero_point), numbers, alpha=inverse, out=numbers)
    return QuantizedInput(_lowest_bytes(levels), 1 / inverse, zero_point)


def _lowest_bytes(integers: Tensor) -> Tensor:
    return integers.view(torch.int32).to(torch.uint8)
