"""Channel attention of the vision tower by way of the Gram matrix, in half precision: fewer products and bytes.

In DaViT each of the E channels of a group attends to the group's other channels over all N positions. Queries and keys
are linear in the input x, and so their products follow from the Gram matrix x'x alone. Values, attention and projection
are linear in x, too, and so together are one matrix for each image. The input is multiplied by itself and by that
matrix: 4 N C^2 multiplications instead of 8, and no tensor of 3 C channels is written. The result is exact but for
rounding; float32 keeps transformers' own order of operations.

Shapes: B images, N positions, C channels, G groups of E channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from florence2.engine.encoder.attention_patch import AttentionPatch


class GramChannelAttention(AttentionPatch):
    """The forward method of one channel attention: (B, N, C) to (B, N, C)."""

    class_suffix = "ChannelAttention"

    def __call__(self, input_BNC: Tensor) -> Tensor:
        """Compute attention; with few positions for its channels the plain form needs fewer products."""
        positions, channels = input_BNC.shape[1:]
        return self._plain(input_BNC) if positions <= 2 * channels else self._attend(input_BNC)

    def _attend(self, input_BNC: Tensor) -> Tensor:
        attention = self._attention
        positions, channels = input_BNC.shape[1:]
        group_shape = (attention.groups, channels // attention.groups)
        query_CC, key_CC, value_CC = attention.qkv.weight.chunk(3)
        gram_BCC = _gram(input_BNC)
        key_gram_BGCE = (gram_BCC @ key_CC.T).view(-1, channels, *group_shape).transpose(1, 2)
        scores_BGEE = (query_CC.view(*group_shape, channels) @ key_gram_BGCE).float()
        qkv_bias = attention.qkv.bias
        if qkv_bias is not None:
            scores_BGEE = scores_BGEE + self._bias_scores(input_BNC.sum(1).float(), positions, group_shape)
        weights_BGEE = (scores_BGEE * positions**-0.5).softmax(-1).to(input_BNC.dtype)
        combined_BCC = attention.proj.weight @ (weights_BGEE @ value_CC.view(*group_shape, channels)).flatten(1, 2)
        bias_BC = attention.proj.bias
        if qkv_bias is not None:
            value_bias_BC = (weights_BGEE @ qkv_bias[2 * channels :].view(*group_shape, 1)).flatten(1)
            bias_BC = F.linear(value_bias_BC, attention.proj.weight, attention.proj.bias)
        return torch.baddbmm(bias_BC.view(-1, 1, channels), input_BNC, combined_BCC.mT)

    def _bias_scores(self, sum_BC: Tensor, positions: int, group_shape: tuple[int, int]) -> Tensor:
        """Compute what the biases of queries and keys add to their products, in float32."""
        weight, bias = self._attention.qkv.weight.float(), self._attention.qkv.bias.float()
        query_CC, key_CC, _ = weight.chunk(3)
        query_GE, key_GE, _ = bias.view(3, *group_shape)
        query_sum_BGE = F.linear(sum_BC, query_CC).view(-1, *group_shape)
        key_sum_BGE = F.linear(sum_BC, key_CC).view(-1, *group_shape) + positions * key_GE
        added_BGEE: Tensor = query_sum_BGE.unsqueeze(3) * key_GE.unsqueeze(1) + query_GE.unsqueeze(
            2
        ) * key_sum_BGE.unsqueeze(2)
        return added_BGEE


def _gram(input_BNC: Tensor) -> Tensor:
    """Multiply each image by itself; on a CPU a product of two matrices is up to twice as fast as one in a batch."""
    if input_BNC.device.type == "cpu":
        return torch.stack([input_NC.T @ input_NC for input_NC in input_BNC])
    return input_BNC.mT @ input_BNC
