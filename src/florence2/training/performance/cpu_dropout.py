"""Dropout in the language half, on a CPU: in the same places, by the same chances, in less time.

torch draws a CPU's dropout one number at a time on one thread, at 14 ns each, and a picture's attention has four
million of them in every layer. Knows transformers' BART, and nothing of what is learnt.

Shapes: B questions, H heads, L places that ask, S places that are asked, E head size.
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

RATE_STEPS = 1 << 16  # dropout rates are counted in these, and each is exactly what it is counted as
ATTENTION = "florence2_quick_dropout"
SUPPORTED_DEVICES = ("cpu", "meta")  # where the quick way is taken; a model may move on after it was equipped


def use_cpu_dropout(learner: nn.Module) -> None:
    """Let the language half drop the quick way where it lies on a CPU: in the same places, at the same rates."""
    if next(learner.parameters()).device.type != "cpu":
        return
    for module in learner.modules():
        if isinstance(module, (BartEncoder, BartDecoder)):
            _move(module, "dropout", module.layernorm_embedding)
        elif isinstance(module, (BartEncoderLayer, BartDecoderLayer)):
            crossing = [module.encoder_attn.out_proj] if isinstance(module, BartDecoderLayer) else []
            _move(module, "dropout", module.self_attn.out_proj, *crossing, module.fc2)
            _move(module, "activation_dropout", module.activation_fn)
        elif isinstance(module, BartAttention) and module.config._attn_implementation == "sdpa":
            module.config._attn_implementation = ATTENTION


def quantized_rate(rate: float) -> int:
    """Count a rate in steps; not everything is ever dropped."""
    return min(round(rate * RATE_STEPS), RATE_STEPS - 1)


class CpuDropout(torch.autograd.Function):
    """Drop some of a tensor, and grow what is kept by as much."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, dropped: int) -> torch.Tensor:  # type: ignore[override]
        """Take and give any shape."""
        kept = draw_mask(x, dropped)
        context.save_for_backward(kept)
        context.factor = RATE_STEPS / (RATE_STEPS - dropped)
        return apply_mask(kept, x).mul_(context.factor)

    @staticmethod
    def backward(context: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        """Drop the same places."""
        (kept,) = context.saved_tensors
        return apply_mask(kept, grad).mul_(context.factor), None


class DropoutAttention(torch.autograd.Function):
    """Attention whose weights are dropped. Keeps the weights and what was dropped, and not their product."""

    @staticmethod
    def forward(  # type: ignore[override]
        context: Any,
        query_BHLE: torch.Tensor,
        key_BHSE: torch.Tensor,
        value_BHSE: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float,
        dropped: int,
    ) -> torch.Tensor:
        """Give (B, H, L, E); the mask is added to what goes into the softmax."""
        with torch.autocast("cpu", enabled=False):
            scores_BHLS = (query_BHLE * scaling) @ key_BHSE.transpose(2, 3)
            if mask is not None:
                scores_BHLS += mask
            weights_BHLS = scores_BHLS.softmax(-1)
            kept_BHLS = draw_mask(weights_BHLS, dropped)
            context.save_for_backward(query_BHLE, key_BHSE, value_BHSE, weights_BHLS, kept_BHLS)
            context.scaling, context.factor = scaling, RATE_STEPS / (RATE_STEPS - dropped)
            seen_BHLE: torch.Tensor = (apply_mask(kept_BHLS, weights_BHLS) @ value_BHSE).mul_(context.factor)
            return seen_BHLE

    @staticmethod
    def backward(context: Any, grad_BHLE: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        """Give the gradients of query, key and value."""
        query_BHLE, key_BHSE, value_BHSE, weights_BHLS, kept_BHLS = context.saved_tensors
        grad_BHLE = grad_BHLE * context.factor
        value_grad = apply_mask(kept_BHLS, weights_BHLS).transpose(2, 3) @ grad_BHLE
        weights_grad = apply_mask(kept_BHLS, grad_BHLE @ value_BHSE.transpose(2, 3))
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
    **given: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers' `sdpa` does, and drop the quick way where there is something to drop."""
    dropped = quantized_rate(dropout)
    if not dropped or query.device.type not in SUPPORTED_DEVICES:
        answer: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, **given
        )
        return answer
    causal = given.get("is_causal")
    if attention_mask is None and (module.is_causal if causal is None else causal) and query.shape[2] > 1:
        attention_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        least = torch.finfo(query.dtype).min
        attention_mask = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill(~attention_mask, least)
    scaling = given.get("scaling") or query.shape[-1] ** -0.5
    seen_BHLE: torch.Tensor = DropoutAttention.apply(query, key, value, attention_mask, scaling, dropped)
    return seen_BHLE.transpose(1, 2).contiguous(), None


@torch.library.custom_op("florence2::keep", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def draw_mask(like: torch.Tensor, dropped: int) -> torch.Tensor:
    """Draw which places are kept: each but for `dropped` chances in `STEPS`, four places from each 64 bits.

    True and False, or 1 and 0 as wide as what is dropped, where that is half a number. An operation of its own, because
    torch's compiler does not know how to draw whole numbers in place.
    """
    count = like.numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = torch.empty(count, dtype=_kind(like))
    return torch.ge(bits.view(torch.int16)[:count], dropped - RATE_STEPS // 2, out=kept).view(like.shape)


@draw_mask.register_fake
def _(like: torch.Tensor, dropped: int) -> torch.Tensor:  # noqa: ARG001
    return torch.empty(like.shape, dtype=_kind(like))


def _kind(like: torch.Tensor) -> torch.dtype:
    return torch.int16 if like.element_size() == 2 else torch.bool


def apply_mask(kept: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Give what is kept of a tensor, and 0 elsewhere.

    Halves are multiplied as whole numbers, by 1 or 0: to choose among them takes torch eight times as long.
    """
    if kept.dtype == torch.int16 and x.element_size() == 2:
        return (x.view(torch.int16) * kept).view(x.dtype)
    # Wider numbers are chosen: a product with truths would make numbers of those first.
    return torch.where(kept.bool(), x, 0)


def _move(owner: Any, name: str, *modules: nn.Module) -> None:
    """Let modules drop what they give, in place of what their owner drops of it."""
    if dropped := quantized_rate(getattr(owner, name)):
        for module in modules:
            module.register_forward_hook(partial(_drop, dropped))
    setattr(owner, name, 0.0)


def _drop(dropped: int, module: nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
    if not module.training or output.device.type not in SUPPORTED_DEVICES:
        return functional.dropout(output, dropped / RATE_STEPS, module.training)
    result: torch.Tensor = CpuDropout.apply(output, dropped)
    return result


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
