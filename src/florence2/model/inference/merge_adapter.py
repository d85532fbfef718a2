"""Merging of a LoRA into the model of prediction: peft's operations in peft's order, without its import.

Plain LoRA, rsLoRA and DoRA on linear layers and convolutions, and modules that were trained in full. Every other kind,
and every adapter that does not fit its base, is left to peft, which words the error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from florence2.model.adapter.adapter_files import Adapter
from florence2.model.inference.inference_model import InferenceModel
from florence2.model.storage import legacy_layout as legacy

_PREFIX = "base_model.model."
_DEFAULT_RANK, _DEFAULT_ALPHA = 8, 8
# The settings that shape the merge, and those that were of use during training alone.
_APPLIED = {
    *("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save"),
    *("peft_type", "base_model_name_or_path", "revision", "target_modules"),
}
_WITHOUT_EFFECT = {
    *("inference_mode", "lora_dropout", "peft_version", "megatron_core", "qalora_group_size", "eva_config"),
    *("enable_lora", "merge_weights"),
}
# These values of settings are those of a plain LoRA; the initializations leave the base as it is.
_PLAIN = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva")}


def can_merge(config: Mapping[str, Any]) -> bool:
    """Return whether the settings of an adapter are among those that `merge_adapter` knows."""
    numbers = [config.get("r", _DEFAULT_RANK), config.get("lora_alpha", _DEFAULT_ALPHA)]
    others = {key: value for key, value in config.items() if key not in _APPLIED | _WITHOUT_EFFECT}
    is_plain = all(
        value in (None, False, "", [], {}) or any(value is each or value == each for each in _PLAIN.get(key, ()))
        for key, value in others.items()
    )
    saved = config.get("modules_to_save") or ()
    is_embedding_saved = any(re.search(r"(embed_tokens|shared)$", name) for name in saved)
    return is_plain and not is_embedding_saved and all(isinstance(each, int | float) for each in numbers)


@torch.no_grad()
def merge_adapter(model: InferenceModel, adapter: Adapter) -> bool:
    """Merge a LoRA into its base in float32, in place; False, with the base spoilt, where a tensor does not fit."""
    config, vocab_size = adapter.config, model.lm_head.out_features
    if not all(name.startswith(_PREFIX) for name in adapter.state):
        return False
    state = legacy.resize_adapter(adapter.state, vocab_size)
    state = {name.removeprefix(_PREFIX): tensor.to(model.device, model.dtype) for name, tensor in state.items()}
    modules, saved = legacy.adapted_modules(adapter.state), config.get("modules_to_save") or []
    if any(name.endswith("lm_head") for name in (*modules, *saved)):
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())
    try:
        for path in saved:
            _replace_module(model.get_submodule(path), path, state)
        for path in modules:
            _merge_layer(model.get_submodule(path), path, state, config)
    except (AttributeError, KeyError, ValueError, TypeError, ArithmeticError):  # no such module, tensor, shape or rank
        return False
    return not state


def _replace_module(module: nn.Module, path: str, state: legacy.State) -> None:
    """Replace all weights of a module by those that were trained beside the LoRA."""
    for name, weight in module.state_dict(keep_vars=True).items():
        weight.data = _take(state, f"{path}.{name}", weight.shape)


def _merge_layer(layer: nn.Module, path: str, state: legacy.State, config: Mapping[str, Any]) -> None:
    """Add the product of the two matrices to the weight of a layer, and rescale its rows for DoRA."""
    is_linear = isinstance(layer, nn.Linear)
    if not is_linear and not (isinstance(layer, nn.Conv2d) and layer.groups == 1):
        raise ValueError(path)
    weight: Tensor = layer.weight  # type: ignore[assignment]
    rank = (config.get("rank_pattern") or {}).get(path, config.get("r", _DEFAULT_RANK))
    alpha = (config.get("alpha_pattern") or {}).get(path, config.get("lora_alpha", _DEFAULT_ALPHA))
    num_rows = weight.shape[0]
    a = _take(state, f"{path}.lora_A.weight", (rank, *weight.shape[1:]))
    b = _take(state, f"{path}.lora_B.weight", (num_rows, rank, *[1] * (weight.dim() - 2)))
    delta = _delta(a, b, alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)
    if not config.get("use_dora"):
        weight.data += delta
        return
    name = f"{path}.lora_magnitude_vector"
    name = name if name in state else f"{name}.weight"
    magnitude = _take(state, name, (num_rows,) if is_linear else (1, num_rows, 1, 1))
    merged = weight + delta
    if is_linear:
        norm = torch.linalg.norm(merged, dim=1)
    else:
        norm = merged.norm(p=2, dim=(1, 2, 3), keepdim=True).transpose(1, 0)
    weight.data = (magnitude / norm).view(-1, *[1] * (weight.dim() - 1)) * merged


def _delta(a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """Return the scaled product of the two matrices."""
    if a.dim() == 2:
        product = b @ a
    elif a.shape[2:] == (1, 1):
        product = (b.squeeze(3).squeeze(2) @ a.squeeze(3).squeeze(2)).unsqueeze(2).unsqueeze(3)
    else:
        product = functional.conv2d(a.transpose(0, 1), b).transpose(0, 1)
    return product * scaling


def _take(state: legacy.State, name: str, shape: tuple[int, ...]) -> Tensor:
    """Remove a tensor from the state and return it; raise KeyError or ValueError where it does not fit."""
    tensor = state.pop(name)
    if tensor.shape != shape:
        raise ValueError(name)
    return tensor
