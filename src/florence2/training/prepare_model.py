"""Preparation of a model for training: LoRA or full fine-tuning, a frozen component, dtypes, faster layers."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NewType

import torch
from peft import LoraConfig, PeftModel
from torch import nn
from transformers.models.florence2.modeling_florence2 import (
    Florence2VisionChannelAttention,
    Florence2VisionWindowAttention,
)

from florence2.devices import has_slow_fused_attention
from florence2.errors import OptionError
from florence2.model.adapter.lora import add_lora, merge
from florence2.model.adapter.quantized import check_quantization_available
from florence2.model.adapter.target_modules import MODULE_PREFIXES, is_in_component, resolve_target_modules
from florence2.model.load import TEXT_DROPOUT_RATES, VISION_DROPOUT_RATES
from florence2.settings_io import parse_options
from florence2.training.performance.cpu_dropout import use_cpu_dropout
from florence2.training.performance.feature_forward import use_feature_forward
from florence2.training.performance.lora_linear import use_fused_lora

# A flag sets each of these fields of peft's `LoraConfig`.
FLAG_OF_LORA_ARG = {
    "r": "--rank",
    "lora_alpha": "--alpha",
    "lora_dropout": "--dropout",
    "target_modules": "--target_modules",
}

# What `prepare_model_for_training` returns; it accepts cached image features in place of pixels.
TrainableModel = NewType("TrainableModel", nn.Module)


@dataclass(frozen=True)
class LoraOptions:
    """Shape of a new LoRA; `args` holds further fields of peft's `LoraConfig`."""

    rank: int
    alpha: float
    dropout: float
    target_modules: Sequence[str]
    args: Mapping[str, Any] = field(default_factory=dict)


def parse_lora_args(words: Sequence[str]) -> dict[str, Any]:
    """Parse the `key=value` words of `--lora_args`."""
    args = parse_options("--lora_args", tuple(words), [item.name for item in fields(LoraConfig)])
    for name in args.keys() & FLAG_OF_LORA_ARG.keys():
        raise OptionError(f"`--lora_args {name}` has its own flag", f"use `{FLAG_OF_LORA_ARG[name]}`")
    return args


def parse_dropout_rates(words: Sequence[str]) -> dict[str, float]:
    """Parse the `key=value` words of `--model_dropout_args`."""
    rates = parse_options("--model_dropout_args", tuple(words), [*VISION_DROPOUT_RATES, *TEXT_DROPOUT_RATES])
    for name, rate in rates.items():
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
            raise OptionError(
                f"`--model_dropout_args {name}={rate}` is not a dropout rate", "pass a number from 0 to below 1"
            )
    return {name: float(rate) for name, rate in rates.items()}


def check_can_quantize(lora: LoraOptions | None, device: torch.device) -> None:
    """Raise OptionError if a 4-bit base cannot be trained: without LoRA, or on a device without 4-bit kernels."""
    if lora is None:
        raise OptionError(
            "`--quantize` does not work with `--rank 0`: 4-bit weights are not trainable", "pass a `--rank`"
        )
    check_quantization_available(device)


def prepare_model_for_training(
    model: nn.Module, *, lora: LoraOptions | None, freeze: str, dtype: torch.dtype, num_image_tokens: int
) -> TrainableModel:
    """Make a model trainable in place: continue its adapter, add a new LoRA, or train all weights.

    `lora` is ignored if the model has an adapter; None trains all weights. `freeze` names the component that stays as
    it is: `vision`, `language` or `none`. `dtype` is the dtype of autocast. Trainable weights are float32.
    """
    if isinstance(model, PeftModel):
        trainable: nn.Module = _resume_adapter(model)
    elif lora is not None:
        trainable = _add_lora(model, lora, freeze)
    else:
        trainable = model.requires_grad_(True).float()
    for name, weight in trainable.named_parameters():
        if is_in_component(name, freeze):
            weight.requires_grad_(False)
    for name, module in trainable.named_modules():
        if name.endswith("model.vision_tower"):
            _use_fast_layers(module, dtype)
    use_feature_forward(trainable, num_image_tokens)
    use_fused_lora(trainable)
    use_cpu_dropout(trainable)
    if not any(weight.requires_grad for weight in trainable.parameters()):
        raise OptionError(f"`--freeze {freeze}` leaves no trainable weight", "remove `--freeze`")
    return TrainableModel(trainable)


def is_frozen(model: nn.Module, component: str) -> bool:
    """Return whether no weight of a component, `vision` or `language`, is trainable."""
    named = model.named_parameters()
    return not any(weight.requires_grad and is_in_component(name, component) for name, weight in named)


def frozen_modules(model: nn.Module) -> tuple[nn.Module, ...]:
    """Return the modules of frozen components, which stay in eval mode, so that they drop nothing."""
    prefixes = {
        prefix.rstrip(".")
        for component, prefixes in MODULE_PREFIXES.items()
        if is_frozen(model, component)
        for prefix in prefixes
    }
    return tuple(module for name, module in model.named_modules() if name.removeprefix("base_model.model.") in prefixes)


def inference_copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Copy a trainable model for inference: LoRA merged, eval mode. The model itself does not change."""
    duplicate = copy.deepcopy(model).float()  # merging in float32 loses less than merging rounded weights
    merged = merge(duplicate) if isinstance(duplicate, PeftModel) else duplicate
    merged.score_calibration = None  # it does not hold for other weights
    return merged.requires_grad_(False).to(dtype).eval()


def _use_fast_layers(tower: Any, dtype: torch.dtype) -> None:
    """Use the memory format of images in a vision tower, and eager attention where it is faster in bfloat16.

    On a GPU that is channel attention: no fused kernel has heads as wide as an image has tokens, and torch's fallback
    multiplies in float32. float16 needs that fallback, because sums over all image tokens overflow in float16. On a CPU
    it is window attention (`has_slow_fused_attention`).
    """
    tower.to(memory_format=torch.channels_last)
    kinds: list[type] = []
    if tower.device.type == "cuda" and dtype == torch.bfloat16:
        kinds.append(Florence2VisionChannelAttention)
    if has_slow_fused_attention(tower.device, dtype):
        kinds.append(Florence2VisionWindowAttention)
    for module in tower.modules():
        if type(module) in kinds:
            module.config = copy.copy(module.config)
            module.config._attn_implementation = "eager"


def _add_lora(model: Any, lora: LoraOptions, freeze: str) -> PeftModel:
    names = resolve_target_modules(model, tuple(lora.target_modules))
    targets = [name for name in names if not is_in_component(name, freeze)]
    if not targets:
        raise OptionError("all `--target_modules` are in the frozen component", "remove `--freeze`")
    return add_lora(model, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, target_modules=targets, **lora.args)


def _resume_adapter(model: PeftModel) -> PeftModel:
    for config in model.peft_config.values():
        config.inference_mode = False
    for name, weight in model.named_parameters():
        is_adapter = ".lora_" in name or ".modules_to_save." in name
        weight.requires_grad_(is_adapter)
        if is_adapter:
            weight.data = weight.data.float()
    return model
