"""Fast dropout in the language component on a CPU, at the same layers and rates.

On a CPU torch draws dropout one number at a time on one thread, 14 ns each, and the attention over an image needs four
million of them in each layer.

Shapes: B samples, H heads, L query positions, S key positions, E head size.
"""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.bart.modeling_bart import (
    BartAttention,
    BartDecoder,
    BartDecoderLayer,
    BartEncoder,
    BartEncoderLayer,
)

RATE_STEPS = 1 << 16  # a dropout rate is a multiple of 1 / RATE_STEPS
ATTENTION = "florence2_cpu_dropout"
SUPPORTED_DEVICES = ("cpu", "meta")  # a model may move to another device later, where torch's dropout is used


def use_cpu_dropout(model: nn.Module) -> None:
    """Use fast dropout in the language component of a model on a CPU, at the same layers and rates."""
    if next(model.parameters()).device.type != "cpu":
        return
    for module in model.modules():
        if isinstance(module, (BartEncoder, BartDecoder)):
            _drop_in_hooks(module, "dropout", module.layernorm_embedding)
        elif isinstance(module, (BartEncoderLayer, BartDecoderLayer)):
            cross_attention = [module.encoder_attn.out_proj] if isinstance(module, BartDecoderLayer) else []
            _drop_in_hooks(module, "dropout", module.self_attn.out_proj, *cross_attention, module.fc2)
            _drop_in_hooks(module, "activation_dropout", module.activation_fn)
        elif isinstance(module, BartAttention) and module.config._attn_implementation == "sdpa":
            module.config._attn_implementation = ATTENTION


def quantized_rate(rate: float) -> int:
    """Round a rate to multiples of `1 / RATE_STEPS`, below 1, and return the number of them."""
    return min(round(rate * RATE_STEPS), RATE_STEPS - 1)


class CpuDropout(torch.autograd.Function):
    """Dropout of a tensor, with the rate in `RATE_STEPS`."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, drop_steps: int) -> torch.Tensor:  # type: ignore[override]
        """Drop elements of a tensor of any shape."""
        mask = draw_mask(x, drop_steps)
        context.save_for_backward(mask)
        context.factor = RATE_STEPS / (RATE_STEPS - drop_steps)
        return apply_mask(mask, x).mul_(context.factor)

    @staticmethod
    def backward(context: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        """Drop the same elements of the gradient."""
        (mask,) = context.saved_tensors
        return apply_mask(mask, grad).mul_(context.factor), None


class DropoutAttention(torch.autograd.Function):
    """Attention with dropout of its weights. Saves the weights and the mask, but not their product."""

    @staticmethod
    def forward(  # type: ignore[override]
        context: Any,
        query_BHLE: torch.Tensor,
        key_BHSE: torch.Tensor,
        value_BHSE: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float,
        drop_steps: int,
    ) -> torch.Tensor:
        """Return (B, H, L, E); the mask is added to the scores."""
        with torch.autocast("cpu", enabled=False):
            scores_BHLS = (query_BHLE * scaling) @ key_BHSE.transpose(2, 3)
            if mask is not None:
                scores_BHLS += mask
            weights_BHLS = scores_BHLS.softmax(-1)
            dropout_BHLS = draw_mask(weights_BHLS, drop_steps)
            context.save_for_backward(query_BHLE, key_BHSE, value_BHSE, weights_BHLS, dropout_BHLS)
            context.scaling, context.factor = scaling, RATE_STEPS / (RATE_STEPS - drop_steps)
            output_BHLE: torch.Tensor = (apply_mask(dropout_BHLS, weights_BHLS) @ value_BHSE).mul_(context.factor)
            return output_BHLE

    @staticmethod
    def backward(context: Any, grad_BHLE: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        """Return the gradients of query, key and value."""
        query_BHLE, key_BHSE, value_BHSE, weights_BHLS, dropout_BHLS = context.saved_tensors
        grad_BHLE = grad_BHLE * context.factor
        value_grad = apply_mask(dropout_BHLS, weights_BHLS).transpose(2, 3) @ grad_BHLE
        weights_grad = apply_mask(dropout_BHLS, grad_BHLE @ value_BHSE.transpose(2, 3))
        scores_grad = torch._softmax_backward_data(weights_grad, weights_BHLS, -1, weights_BHLS.dtype)
        query_grad = (scores_grad @ key_BHSE).mul_(context.scaling)
        key_grad = (scores_grad.transpose(2, 3) @ query_BHLE).mul_(context.scaling)
        return query_grad, key_grad, value_grad, None, None, None


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention with fast dropout; without dropout or on other devices run transformers' `sdpa`."""
    drop_steps = quantized_rate(dropout)
    if not drop_steps or query.device.type not in SUPPORTED_DEVICES:
        output: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, **kwargs
        )
        return output
    is_causal = kwargs.get("is_causal")
    if attention_mask is None and (module.is_causal if is_causal is None else is_causal) and query.shape[2] > 1:
        attention_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        lowest = torch.finfo(query.dtype).min
        attention_mask = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill(~attention_mask, lowest)
    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    output_BHLE: torch.Tensor = DropoutAttention.apply(query, key, value, attention_mask, scaling, drop_steps)
    return output_BHLE.transpose(1, 2).contiguous(), None


@torch.library.custom_op("florence2::draw_mask", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def draw_mask(like: torch.Tensor, drop_steps: int) -> torch.Tensor:
    """Draw a mask that is false with probability `drop_steps / RATE_STEPS`, four elements from each 64 random bits.

    The mask is boolean, or int16 with 1 and 0 for tensors of 16 bits. It is a custom operation because torch's compiler
    does not support in-place random integers.
    """
    count = like.numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    mask = torch.empty(count, dtype=_mask_dtype(like))
    return torch.ge(bits.view(torch.int16)[:count], drop_steps - RATE_STEPS // 2, out=mask).view(like.shape)


@draw_mask.register_fake
def _(like: torch.Tensor, drop_steps: int) -> torch.Tensor:  # noqa: ARG001
    return torch.empty(like.shape, dtype=_mask_dtype(like))


def _mask_dtype(like: torch.Tensor) -> torch.dtype:
    return torch.int16 if like.element_size() == 2 else torch.bool


def apply_mask(mask: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return a tensor with 0 where the mask is false.

    Elements of 16 bits are multiplied as integers, because `torch.where` takes eight times as long for them.
    """
    if mask.dtype == torch.int16 and x.element_size() == 2:
        return (x.view(torch.int16) * mask).view(x.dtype)
    # For wider elements `torch.where` is faster: a product would convert the mask first.
    return torch.where(mask.bool(), x, 0)


def _drop_in_hooks(owner: Any, name: str, *modules: nn.Module) -> None:
    """Drop the outputs of modules in hooks, and set the rate with which their owner drops them to 0."""
    if drop_steps := quantized_rate(getattr(owner, name)):
        for module in modules:
            module.register_forward_hook(partial(_drop, drop_steps))
    setattr(owner, name, 0.0)


def _drop(drop_steps: int, module: nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
    if not module.training or output.device.type not in SUPPORTED_DEVICES:
        return functional.dropout(output, drop_steps / RATE_STEPS, module.training)
    result: torch.Tensor = CpuDropout.apply(output, drop_steps)
    return result


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
