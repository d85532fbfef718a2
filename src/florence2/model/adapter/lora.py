"""LoRA adapters: adding, loading, merging and saving them.

peft does the work; this module checks that every tensor is used, and handles what is particular to this model.
"""

import copy
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from peft import EvaConfig, LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from transformers import Florence2ForConditionalGeneration

from florence2.config import DEFAULT_TARGET_MODULES
from florence2.errors import CheckpointError, OptionError
from florence2.model.adapter.adapter_files import Adapter
from florence2.model.adapter.adapter_settings import read_lora_settings
from florence2.model.adapter.target_modules import resolve_target_modules
from florence2.model.storage import checkpoint_files as checkpoint
from florence2.model.storage import legacy_layout as legacy

_NAME = "default"
# These initializations change the base's weights, so that the adapter alone does not determine the model.
_BASE_CHANGING_INITS = ("pissa", "olora")
_NOT_ADDED = "LoRA cannot be added: "
# What peft raises for values that it does not check.
_PEFT_ERRORS = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError, re.error)
_INITS = (True, False, "gaussian", "orthogonal", "eva", *_BASE_CHANGING_INITS)


def add_lora(
    model: Florence2ForConditionalGeneration,
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    rslora: bool = False,
    init: bool | str = True,
    target_modules: str | Sequence[str] = DEFAULT_TARGET_MODULES,
    revision: str | None = None,
    **options: Any,
) -> PeftModel:
    """Freeze a model and add a new LoRA to it.

    `target_modules` are names such as `fc1`, regular expressions, `all-linear`, `vision` or `language`; `options` are
    further fields of peft's `LoraConfig`. Raises OptionError for a name that matches nothing.
    """
    settings = {
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "use_rslora": rslora,
        "init_lora_weights": init,
        "revision": revision,
        "target_modules": resolve_target_modules(model, target_modules),
    } | options
    if unknown := settings.keys() - {field.name for field in fields(LoraConfig)}:
        raise OptionError(f"`{sorted(unknown)[0]}` is not a LoRA option", "pass a field of peft's `LoraConfig`")
    _check_init(settings["init_lora_weights"])
    if getattr(model, "is_loaded_in_4bit", False) and _changes_base(settings["init_lora_weights"]):
        what = f"the LoRA initialization `{settings['init_lora_weights']}` cannot change a base in 4 bits"
        raise OptionError(what, "remove `--quantize`, or initialize with gaussian, orthogonal or eva")
    if settings["init_lora_weights"] == "eva":
        settings.setdefault("eva_config", EvaConfig())
    wrapped = _wrap(model, settings)
    if _changes_base(settings["init_lora_weights"]):
        wrapped.initial_lora = {name: tensor.clone() for name, tensor in _lora_state(wrapped).items()}
    return wrapped


def load_adapter(model: Florence2ForConditionalGeneration, adapter: Adapter) -> PeftModel:
    """Add a LoRA with its weights to its base; every tensor must match a module."""
    settings = read_lora_settings(adapter.config)
    init = settings.get("init_lora_weights", True)
    if init not in _INITS:
        raise CheckpointError(
            f"the adapter's initialization `{init}` changed its base, which cannot be repeated",
            "convert it to plain LoRA where it was trained (peft: `path_initial_model_for_weight_conversion`)",
        )
    changes_base = init in _BASE_CHANGING_INITS
    settings |= {"init_lora_weights": init if changes_base else True, "inference_mode": True}
    for name in ("base_model_name_or_path", "eva_config"):
        settings.pop(name, None)
    try:
        wrapped = _wrap(model, settings, on_meta=not changes_base)
    except OptionError as error:
        reason = error.what.removeprefix(_NOT_ADDED)
        raise CheckpointError(
            f"the adapter does not fit its base: {reason}", f"check its `{checkpoint.ADAPTER_CONFIG}`"
        ) from None
    state = legacy.resize_adapter(adapter.state, model.config.text_config.vocab_size)
    try:
        result = set_peft_model_state_dict(wrapped, state, low_cpu_mem_usage=not changes_base)
    except (RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[-1].strip().rstrip(".")
        raise CheckpointError(
            f"the adapter does not fit its base: {reason}", "pass the base it was trained on"
        ) from None
    missing = [name for name in result.missing_keys if ".lora_" in name or ".modules_to_save." in name]
    if unmatched := [*missing, *result.unexpected_keys]:
        raise CheckpointError(
            f"{len(unmatched)} weights of the adapter match no module of its base, such as `{sorted(unmatched)[0]}`",
            "pass the base it was trained on",
        )
    return wrapped.eval()


def merge(model: PeftModel) -> Florence2ForConditionalGeneration:
    """Merge the LoRA into its base and return the plain model."""
    with _without_peft_warnings():
        merged = model.merge_and_unload()
    return merged.requires_grad_(True)


def save_adapter(
    model: PeftModel,
    folder: Path,
    base: str | None = None,
    revision: str | None = None,
    full_state_dict: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write the LoRA and its config with the name of its base; a local base is named by its absolute path.

    `full_state_dict` holds the weights of a model that is sharded over processes.
    """
    config = copy.copy(model.peft_config[_NAME])
    state = _lora_state(model, full_state_dict)
    if initial := getattr(model, "initial_lora", None):
        _make_plain(state, initial, config)
    if config.init_lora_weights == "eva":  # its matrices are plain LoRA matrices
        config.init_lora_weights, config.eva_config = True, None
    base = base or str(model.get_base_model().config.name_or_path)
    is_path = base != checkpoint.DEMO and Path(base).is_dir()
    config.base_model_name_or_path = str(Path(base).resolve()) if is_path else base
    config.revision = revision or config.revision
    config.inference_mode = True
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    save_file(state, folder / checkpoint.ADAPTER_WEIGHTS[0], metadata={"format": "pt"})


def _lora_state(model: PeftModel, full_state_dict: Mapping[str, torch.Tensor] | None = None) -> legacy.State:
    full_state = None if full_state_dict is None else dict(full_state_dict)
    state = get_peft_model_state_dict(model, full_state, save_embedding_layers=False)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def _make_plain(state: legacy.State, initial: legacy.State, config: LoraConfig) -> None:
    """Convert an adapter of a changed base to one of the original base: B A - B0 A0, with twice the rank."""
    for name, tensor in initial.items():
        if ".lora_A" in name:
            state[name] = torch.cat([state[name], tensor])
        elif ".lora_B" in name:
            state[name] = torch.cat([state[name], -tensor], dim=1)
    config.lora_alpha *= math.sqrt(2) if config.use_rslora else 2
    config.r *= 2
    config.init_lora_weights = True


def _wrap(model: Florence2ForConditionalGeneration, settings: dict[str, Any], on_meta: bool = False) -> PeftModel:
    targets = {*settings["target_modules"], *(settings.get("modules_to_save") or ())}
    if any(name.endswith(("embed_tokens", "shared")) for name in targets):
        raise OptionError("three layers share the token embedding, which cannot have a LoRA", "remove it")
    if any(name.endswith("lm_head") for name in targets):
        _untie_head(model)
    revision = settings.pop("revision", None)
    try:
        with _without_peft_warnings():
            # Without a task type peft passes on all arguments; its task classes expect those of text models.
            return get_peft_model(
                model,
                LoraConfig(**settings, task_type=None),
                low_cpu_mem_usage=on_meta,
                revision=revision,
            )
    except torch.OutOfMemoryError:
        raise
    except _PEFT_ERRORS as error:
        reason = checkpoint.first_line(error)
        raise OptionError(f"{_NOT_ADDED}{reason}", "change the LoRA options") from None


def _untie_head(model: Florence2ForConditionalGeneration) -> None:
    """Copy the output layer's matrix, so that a LoRA merged into it does not change the input embedding."""
    if model.config.tie_word_embeddings:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        model.config.tie_word_embeddings = False
        model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)


def _changes_base(init: Any) -> bool:
    return str(init).startswith(_BASE_CHANGING_INITS)


def _check_init(init: Any) -> None:
    if init in _INITS or re.fullmatch(r"pissa_niter_\d+", str(init)):
        return
    raise OptionError(
        f"`{init}` is not a supported LoRA initialization",
        "pass gaussian, orthogonal, pissa, pissa_niter_16, olora or eva",
    )


@contextmanager
def _without_peft_warnings() -> Iterator[None]:
    """Ignore warnings of peft that a user cannot act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*eva initialization used with low_cpu_mem_usage")
        yield
