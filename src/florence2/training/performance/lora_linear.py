"""LoRA's branch beside a layer: the same sums in less time, with less kept for the backward pass.

torch draws a CPU's dropout one number at a time, and multiplies the gradients of thin matrices the slow way round; at
real size the two took more than a quarter of a step. On a GPU peft turns a half-precision input into float32 to drop
some of it, and back. Knows peft's linear layers, and nothing of Florence-2.

Shapes: N places of a batch, I and O the layer's width before and behind, R the rank.
"""

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import nn
from torch.nn import functional

from florence2.training.performance.cpu_dropout import RATE_STEPS, apply_mask, draw_mask, quantized_rate

SUPPORTED_DEVICES = ("cpu", "cuda")


def use_fused_lora(learner: nn.Module) -> None:
    """Let every plain LoRA layer take its branch the quick way; names and weights stay as they are."""
    for layer in learner.modules():
        if type(layer) is Linear and layer.weight.device.type in SUPPORTED_DEVICES:
            layer.__class__ = FusedLoraLinear


class FusedLoraLinear(Linear):  # type: ignore[misc]
    """peft's linear layer with one plain adapter; whatever else is asked of it, peft does itself."""

    def forward(self, x: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        """Give what the layer says and the branch adds to it."""
        name = self._plain(x)
        if name is None or given or named:
            asked: torch.Tensor = super().forward(x, *given, **named)
            return asked
        result = self.base_layer(x)
        dropout = self.lora_dropout[name]
        rate = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
        down_RI, up_OR = (side[name].weight.to(result.dtype) for side in (self.lora_A, self.lora_B))
        added: torch.Tensor = LoraBranch.apply(result, x.to(result.dtype), down_RI, up_OR, self.scaling[name], rate)
        return added

    def _plain(self, x: torch.Tensor) -> str | None:
        """Name the one adapter that is at work; None where it is more than two matrices, or computes otherwise."""
        names = self.active_adapters
        if self.disable_adapters or self.merged or len(names) != 1 or names[0] not in self.lora_A:
            return None
        alike = x.dtype == self.weight.dtype == self.lora_A[names[0]].weight.dtype
        device = x.device.type
        if (
            device not in SUPPORTED_DEVICES
            or names[0] in self.lora_variant
            or not (alike or torch.is_autocast_enabled(device))
        ):
            return None
        halves = self.lora_A[names[0]], self.lora_B[names[0]]
        # Weights that DeepSpeed or FSDP part are brought together for their own module alone.
        parted = any(type(half) is not nn.Linear or hasattr(half.weight, "ds_id") for half in halves)
        return None if parted or halves[1].bias is not None else str(names[0])


class LoraBranch(torch.autograd.Function):
    """Add `scaling * dropout(x) @ down.T @ up.T` to a result, in place."""

    @staticmethod
    def forward(  # type: ignore[override]
        context: Any,
        result: torch.Tensor,
        x: torch.Tensor,
        down_RI: torch.Tensor,
        up_OR: torch.Tensor,
        scaling: float,
        rate: float,
    ) -> torch.Tensor:
        """Take (..., O) and (..., I).

        The result is not marked as changed in place: it is seen through a view, and autograd would copy its gradient
        twice. Nobody has kept it, for the gradients of a linear layer need only what went into it.
        """
        seen_NI, kept_NI, factor = x.reshape(-1, x.shape[-1]), None, scaling
        if rate and x.is_cuda:
            seen_NI, kept_NI = torch.native_dropout(seen_NI, rate, True)
        elif dropped := quantized_rate(rate):
            kept_NI, factor = draw_mask(seen_NI, dropped), scaling / (1 - dropped / RATE_STEPS)
            seen_NI = apply_mask(kept_NI, seen_NI)
        thin_NR = (seen_NI @ down_RI.t()).mul_(factor)
        result.view(-1, result.shape[-1]).addmm_(thin_NR, up_OR.t())
        context.save_for_backward(seen_NI, kept_NI, thin_NR, down_RI, up_OR)
        context.factor, context.shape, context.grown = factor, x.shape, 1 / (1 - rate)
        return result

    @staticmethod
    def backward(context: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        """Give the gradients; thin matrices go first in a product, and lie as they are read."""
        seen_NI, kept_NI, thin_NR, down_RI, up_OR = context.saved_tensors
        grad_NO = grad.reshape(-1, grad.shape[-1])
        up_RO = up_OR.t() if grad.is_cuda else up_OR.t().contiguous()
        back_NR = functional.linear(grad_NO, up_RO).mul_(context.factor)
        x_grad = None
        if context.needs_input_grad[1]:
            x_grad = back_NR @ down_RI
            if kept_NI is not None and grad.is_cuda:
                x_grad = torch.ops.aten.native_dropout_backward(x_grad, kept_NI, context.grown)
            elif kept_NI is not None:
                x_grad = apply_mask(kept_NI, x_grad)
            x_grad = x_grad.view(context.shape)
        down_grad = back_NR.t() @ seen_NI if context.needs_input_grad[2] else None
        up_grad = (thin_NR.t() @ grad_NO).t() if context.needs_input_grad[3] else None
        return grad, x_grad, down_grad, up_grad, None, None
