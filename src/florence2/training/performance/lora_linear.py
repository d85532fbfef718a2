"""Fused LoRA branch of linear layers: faster, and with fewer tensors saved for the backward pass.

On a CPU torch draws dropout one number at a time and multiplies gradients of thin matrices in a slow order; at real
size both took more than a quarter of a step. On a GPU peft casts a half-precision input to float32 for dropout, and
back.

Shapes: N positions of a batch, I and O the layer's input and output width, R the rank.
"""

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import nn
from torch.nn import functional

from florence2.model.patches import replace_class
from florence2.training.performance.cpu_dropout import RATE_STEPS, apply_mask, draw_mask, quantized_rate

SUPPORTED_DEVICES = ("cpu", "cuda")


def use_fused_lora(model: nn.Module) -> None:
    """Use the fused branch in every plain LoRA layer; names and weights do not change."""
    for layer in model.modules():
        if type(layer) is Linear and layer.weight.device.type in SUPPORTED_DEVICES:
            replace_class(layer, FusedLoraLinear)


class FusedLoraLinear(Linear):  # type: ignore[misc]
    """Linear layer of peft with a fused branch for one plain adapter; other calls run peft's forward."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the sum of the base layer and the LoRA branch."""
        name = self._fusible_adapter(x)
        if name is None or args or kwargs:
            unfused: torch.Tensor = super().forward(x, *args, **kwargs)
            return unfused
        result = self.base_layer(x)
        dropout = self.lora_dropout[name]
        rate = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
        a_RI, b_OR = (layers[name].weight.to(result.dtype) for layers in (self.lora_A, self.lora_B))
        output: torch.Tensor = LoraBranch.apply(result, x.to(result.dtype), a_RI, b_OR, self.scaling[name], rate)
        return output

    def _fusible_adapter(self, x: torch.Tensor) -> str | None:
        """Return the name of the active adapter, or None if it is merged, a variant, sharded or not the only one."""
        names = self.active_adapters
        if self.disable_adapters or self.merged or len(names) != 1 or names[0] not in self.lora_A:
            return None
        has_one_dtype = x.dtype == self.weight.dtype == self.lora_A[names[0]].weight.dtype
        device = x.device.type
        if (
            device not in SUPPORTED_DEVICES
            or names[0] in self.lora_variant
            or not (has_one_dtype or torch.is_autocast_enabled(device))
        ):
            return None
        lora_a, lora_b = self.lora_A[names[0]], self.lora_B[names[0]]
        # DeepSpeed and FSDP gather sharded weights in the forward of their own module only.
        is_sharded = any(type(layer) is not nn.Linear or hasattr(layer.weight, "ds_id") for layer in (lora_a, lora_b))
        return None if is_sharded or lora_b.bias is not None else str(names[0])


class LoraBranch(torch.autograd.Function):
    """Adds `scaling * dropout(x) @ A.T @ B.T` to a result in place."""

    @staticmethod
    def forward(  # type: ignore[override]
        context: Any,
        result: torch.Tensor,
        x: torch.Tensor,
        a_RI: torch.Tensor,
        b_OR: torch.Tensor,
        scaling: float,
        rate: float,
    ) -> torch.Tensor:
        """Take a result (..., O) and its input (..., I).

        The result is not marked as modified, because autograd would copy its gradient twice for the view. No backward
        pass needs its old values: the gradients of a linear layer depend on its input only.
        """
        dropped_NI, mask_NI, factor = x.reshape(-1, x.shape[-1]), None, scaling
        if rate and x.is_cuda:
            dropped_NI, mask_NI = torch.native_dropout(dropped_NI, rate, True)
        elif drop_steps := quantized_rate(rate):
            mask_NI, factor = draw_mask(dropped_NI, drop_steps), scaling / (1 - drop_steps / RATE_STEPS)
            dropped_NI = apply_mask(mask_NI, dropped_NI)
        hidden_NR = (dropped_NI @ a_RI.t()).mul_(factor)
        result.view(-1, result.shape[-1]).addmm_(hidden_NR, b_OR.t())
        context.save_for_backward(dropped_NI, mask_NI, hidden_NR, a_RI, b_OR)
        context.factor, context.shape, context.dropout_scale = factor, x.shape, 1 / (1 - rate)
        return result

    @staticmethod
    def backward(context: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        """Return the gradients; the operands of each product have a fast order and memory layout."""
        dropped_NI, mask_NI, hidden_NR, a_RI, b_OR = context.saved_tensors
        grad_NO = grad.reshape(-1, grad.shape[-1])
        b_RO = b_OR.t() if grad.is_cuda else b_OR.t().contiguous()
        hidden_grad_NR = functional.linear(grad_NO, b_RO).mul_(context.factor)
        x_grad = None
        if context.needs_input_grad[1]:
            x_grad = hidden_grad_NR @ a_RI
            if mask_NI is not None and grad.is_cuda:
                x_grad = torch.ops.aten.native_dropout_backward(x_grad, mask_NI, context.dropout_scale)
            elif mask_NI is not None:
                x_grad = apply_mask(mask_NI, x_grad)
            x_grad = x_grad.view(context.shape)
        a_grad = hidden_grad_NR.t() @ dropped_NI if context.needs_input_grad[2] else None
        b_grad = (hidden_NR.t() @ grad_NO).t() if context.needs_input_grad[3] else None
        return grad, x_grad, a_grad, b_grad, None, None
