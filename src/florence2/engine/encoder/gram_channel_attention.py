"""Channel attention of the vision tower by way of one small matrix, in half precision: fewer products, far fewer bytes.

DaViT lets channels attend to each other: each of E channels of a group looks at the others' values over all places.
Queries and keys are linear in the input x, so their products come from the Gram matrix x'x alone; values, attention
and projection are linear in x, too, so together they are one matrix for each picture. So x is multiplied by itself and
by that matrix, 4 N C^2 multiplications instead of 8, and nothing as wide as 3 C is ever written. Exact but for
rounding; float32, where every bit counts, keeps transformers' own order of operations.

Shapes: B pictures, N places, C channels, G groups of E channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.florence2.modeling_florence2 import Florence2VisionChannelAttention


def use_gram_attention(tower: Any) -> None:
    """Let the channel attention of a vision tower take the short way, where it is one."""
    for module in _attentions(tower):
        module.forward = GramChannelAttention(module)


def restore_attention(tower: Any) -> None:
    """Give the tower its own ways back."""
    for module in _attentions(tower):
        module.__dict__.pop("forward", None)


def _attentions(tower: Any) -> Iterator[Any]:
    return (module for module in tower.modules() if isinstance(module, Florence2VisionChannelAttention))


class GramChannelAttention:
    """The forward of one channel attention: (B, N, C) to (B, N, C)."""

    def __init__(self, attention: Any) -> None:
        self._plain = type(attention).forward.__get__(attention)
        self._attention = attention

    def __call__(self, seen_BNC: Tensor) -> Tensor:
        """Attend; with few places for its channels, the plain way is the shorter."""
        places, channels = seen_BNC.shape[1:]
        return self._plain(seen_BNC) if places <= 2 * channels else self._attend(seen_BNC)

    def _attend(self, seen_BNC: Tensor) -> Tensor:
        attention = self._attention
        places, channels = seen_BNC.shape[1:]
        by_group = (attention.groups, channels // attention.groups)
        query_CC, key_CC, value_CC = attention.qkv.weight.chunk(3)
        gram_BCC = seen_BNC.mT @ seen_BNC
        keyed_BGCE = (gram_BCC @ key_CC.T).view(-1, channels, *by_group).transpose(1, 2)
        scores_BGEE = (query_CC.view(*by_group, channels) @ keyed_BGCE).float()
        bias_b = attention.qkv.bias
        if bias_b is not None:
            scores_BGEE = scores_BGEE + self._biased(seen_BNC.sum(1, dtype=torch.float32), places, by_group)
        odds_BGEE = (scores_BGEE * places**-0.5).softmax(-1).to(seen_BNC.dtype)
        whole_BCC = attention.proj.weight @ (odds_BGEE @ value_CC.view(*by_group, channels)).flatten(1, 2)
        shift_BC = attention.proj.bias
        if bias_b is not None:
            mixed_BC = (odds_BGEE @ bias_b[2 * channels :].view(*by_group, 1)).flatten(1)
            shift_BC = F.linear(mixed_BC, attention.proj.weight, attention.proj.bias)
        return torch.baddbmm(shift_BC.view(-1, 1, channels), seen_BNC, whole_BCC.mT)

    def _biased(self, sum_BC: Tensor, places: int, by_group: tuple[int, int]) -> Tensor:
        """Give what the biases of queries and keys add to their products, in float32."""
        weight, bias = self._attention.qkv.weight.float(), self._attention.qkv.bias.float()
        query_CC, key_CC, _ = weight.chunk(3)
        query_GE, key_GE, _ = bias.view(3, *by_group)
        queried_BGE = F.linear(sum_BC, query_CC).view(-1, *by_group)
        keyed_BGE = F.linear(sum_BC, key_CC).view(-1, *by_group) + places * key_GE
        added_BGEE: Tensor = queried_BGE.unsqueeze(3) * key_GE.unsqueeze(1) + query_GE.unsqueeze(
            2
        ) * keyed_BGE.unsqueeze(2)
        return added_BGEE
