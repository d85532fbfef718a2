"""Conversion between Microsoft's checkpoint layout (legacy) and transformers' own (native), by one table of names.

The same rows rename checkpoints and adapters. The functions take and return tensors and plain dictionaries.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from florence2.errors import CheckpointError

State = dict[str, Tensor]

# A row maps a module of Microsoft's code to that of transformers. `*` matches one part of the path.
_BLOCK = "vision_tower.blocks.*.*"
_PROJECTOR = "model.multi_modal_projector"
LAYERS: tuple[tuple[str, str], ...] = (
    ("vision_tower.convs.*.proj", "model.vision_tower.convs.*.conv"),
    ("vision_tower.convs.*.norm", "model.vision_tower.convs.*.norm"),
    (f"{_BLOCK}.*.conv1.fn.dw", f"model.{_BLOCK}.*.conv1"),
    (f"{_BLOCK}.*.conv2.fn.dw", f"model.{_BLOCK}.*.conv2"),
    (f"{_BLOCK}.spatial_block.window_attn.norm", f"model.{_BLOCK}.spatial_block.norm1"),
    (f"{_BLOCK}.channel_block.channel_attn.norm", f"model.{_BLOCK}.channel_block.norm1"),
    (f"{_BLOCK}.*.*.fn.qkv", f"model.{_BLOCK}.*.*.qkv"),
    (f"{_BLOCK}.*.*.fn.proj", f"model.{_BLOCK}.*.*.proj"),
    (f"{_BLOCK}.*.ffn.norm", f"model.{_BLOCK}.*.norm2"),
    (f"{_BLOCK}.*.ffn.fn.net.fc1", f"model.{_BLOCK}.*.ffn.fc1"),
    (f"{_BLOCK}.*.ffn.fn.net.fc2", f"model.{_BLOCK}.*.ffn.fc2"),
    ("image_proj_norm", f"{_PROJECTOR}.image_proj_norm"),
    ("image_pos_embed", f"{_PROJECTOR}.image_position_embed"),
    ("visual_temporal_embed", f"{_PROJECTOR}.visual_temporal_embed"),
    ("language_model.lm_head", "lm_head"),
    ("language_model.model", "model.language_model"),
    ("vision_tower", "model.vision_tower"),  # the parents of the rows above
)
# Two tensors need more than a new name: a bare matrix used as `x @ W`, and a bias that is always zero.
PROJECTION = ("image_projection", f"{_PROJECTOR}.image_projection.weight")
LOGITS_BIAS = "language_model.final_logits_bias"

# The keys of config.json that have one name in both layouts.
_VISION_KEYS = (
    *("depths", "patch_size", "patch_stride", "patch_padding", "patch_prenorm", "num_heads", "num_groups"),
    *("window_size", "drop_path_rate", "projection_dim"),
)
_TEXT_KEYS = (
    *("d_model", "encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"),
    *("encoder_ffn_dim", "decoder_ffn_dim", "encoder_layerdrop", "decoder_layerdrop", "activation_function"),
    *("dropout", "attention_dropout", "activation_dropout", "classifier_dropout", "init_std"),
    *("max_position_embeddings", "scale_embedding", "bos_token_id", "eos_token_id", "pad_token_id"),
    *("decoder_start_token_id", "forced_eos_token_id"),
)
GENERATION_KEYS = (
    *("num_beams", "early_stopping", "no_repeat_ngram_size", "forced_bos_token_id", "forced_eos_token_id"),
    *("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id"),
)
_FEATURES = ["spatial_avg_pool", "temporal_avg_pool"]

HEAD = "lm_head.weight"
SHARED = "model.language_model.shared.weight"
TIED = ("model.language_model.encoder.embed_tokens.weight", "model.language_model.decoder.embed_tokens.weight")
_VOCABULARY = tuple(name.removesuffix(".weight") for name in (HEAD, SHARED, *TIED))
_ADAPTER_PREFIX = "base_model.model."
_ADAPTER_TENSOR = re.compile(r"\.(lora_[A-Za-z_]+|base_layer)(\..*)?$")


def _compile(rows: Iterable[tuple[str, str]]) -> tuple[tuple[re.Pattern[str], str], ...]:
    def pattern(path: str) -> str:
        return "^" + re.escape(path).replace(r"\*", r"([^.]+)") + r"(?=\.|$)"

    def template(path: str) -> str:
        parts = path.split("*")
        return "".join(part + (rf"\{i}" if i < len(parts) else "") for i, part in enumerate(parts, 1))

    return tuple((re.compile(pattern(source)), template(target)) for source, target in rows)


_TO_NATIVE = _compile(LAYERS)
_TO_LEGACY = _compile((native, legacy) for legacy, native in LAYERS)


def _rename(name: str, rows: tuple[tuple[re.Pattern[str], str], ...]) -> str:
    for pattern, template in rows:
        renamed, num_matches = pattern.subn(template, name)
        if num_matches:
            return renamed
    return name


def native_name(name: str) -> str:
    """Convert the name of a module or tensor to transformers' name; an unknown name does not change."""
    return _rename(name, _TO_NATIVE)


def legacy_name(name: str) -> str:
    """Convert the name of a module or tensor to Microsoft's name; an unknown name does not change."""
    return _rename(name, _TO_LEGACY)


def config_to_native(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Convert Microsoft's config.json to keyword arguments of `Florence2Config`.

    Other keys than those of this module are ignored: exports have some sixty more, which would override these.
    """
    vision, text = raw.get("vision_config") or {}, raw.get("text_config") or {}
    temporal, position = vision.get("visual_temporal_embedding") or {}, vision.get("image_pos_embed") or {}
    requirements = {
        "vision_config.model_type": (vision.get("model_type") or "davit", "davit"),
        "visual_temporal_embedding.type": (temporal.get("type"), "COSINE"),
        "image_pos_embed.type": (position.get("type"), "learned_abs_2d"),
        "image_feature_source": (vision.get("image_feature_source"), _FEATURES),
        "projection_dim": (vision.get("projection_dim"), text.get("d_model")),
    }
    for key, (value, required) in requirements.items():
        if value != required:
            what = f"`config.json` has `{key}` {value!r}, where Florence-2 has {required!r}"
            raise CheckpointError(what, "pass a Florence-2 model")
    try:
        vision_config = {key: vision[key] for key in _VISION_KEYS} | {
            "model_type": "florence_vision",
            "embed_dim": vision["dim_embed"],
            "max_temporal_embeddings": temporal["max_temporal_embeddings"],
            "max_position_embeddings": position["max_pos_embeddings"],
        }
    except KeyError as error:
        raise CheckpointError(f"`config.json` lacks {error} in `vision_config`", "copy or download it again") from None
    text_config = {key: text[key] for key in _TEXT_KEYS if key in text}
    return {"vision_config": vision_config, "text_config": text_config | {"model_type": "bart"}}


def config_to_legacy(native: Mapping[str, Any], generation: Mapping[str, Any]) -> dict[str, Any]:
    """Convert `Florence2Config.to_dict()` and a generation config to Microsoft's config.json."""
    vision, text, vocab_size = native["vision_config"], native["text_config"], native["image_token_id"]
    positions = {"type": "learned_abs_2d", "max_pos_embeddings": vision["max_position_embeddings"]}
    frames = {"type": "COSINE", "max_temporal_embeddings": vision["max_temporal_embeddings"]}
    return {
        "architectures": ["Florence2ForConditionalGeneration"],
        "model_type": "florence2",
        "is_encoder_decoder": True,
        "projection_dim": vision["projection_dim"],
        "vocab_size": vocab_size,
        "text_config": {key: text[key] for key in _TEXT_KEYS}
        | {key: generation[key] for key in GENERATION_KEYS if generation.get(key) is not None}
        | {"vocab_size": vocab_size, "is_encoder_decoder": True},
        "vision_config": {key: vision[key] for key in _VISION_KEYS}
        | {"model_type": "davit", "dim_embed": vision["embed_dim"], "image_feature_source": _FEATURES}
        | {"visual_temporal_embedding": frames, "image_pos_embed": positions},
    }


def to_native(state: Mapping[str, Tensor]) -> State:
    """Convert the tensors of a legacy checkpoint; unknown names remain, so that the loader reports them."""
    native = {native_name(name): tensor for name, tensor in state.items()}
    if PROJECTION[0] in native:
        native[PROJECTION[1]] = native.pop(PROJECTION[0]).T
    bias = native.get(LOGITS_BIAS)
    if bias is not None and not bias.any():
        del native[LOGITS_BIAS]
    return native


def to_legacy(state: Mapping[str, Tensor], vocab_size: int) -> State:
    """Convert a native checkpoint to the tensors on the hub: `vocab_size` rows, tied ones once, a zero bias."""
    shared = state[SHARED]
    legacy: State = {}
    for name, tensor in state.items():
        if name in TIED or (name == HEAD and torch.equal(tensor, shared)):
            continue
        if name in (HEAD, SHARED):
            tensor = tensor[:vocab_size]
        legacy[legacy_name(name)] = tensor.contiguous()
    legacy[PROJECTION[0]] = legacy.pop(PROJECTION[1]).T.contiguous()
    legacy[LOGITS_BIAS] = torch.zeros(1, vocab_size, dtype=shared.dtype, device=shared.device)
    return legacy


def adapter_to_native(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[State, dict[str, Any]]:
    """Convert a LoRA for Microsoft's modules, and its config, whose target modules become full paths."""
    return _translate_adapter(state, config, native_name)


def adapter_to_legacy(
    state: Mapping[str, Tensor], config: Mapping[str, Any], vocab_size: int
) -> tuple[State, dict[str, Any]]:
    """Convert a LoRA for native modules to one for Microsoft's, with their `vocab_size`."""
    return _translate_adapter(resize_adapter(state, vocab_size), config, legacy_name)


def adapted_modules(state: Mapping[str, Tensor]) -> list[str]:
    """Return the sorted paths of the modules that have a LoRA in an adapter's tensors."""
    paths = {
        name.removeprefix(_ADAPTER_PREFIX)[: match.start() - len(_ADAPTER_PREFIX)]
        for name in state
        if name.startswith(_ADAPTER_PREFIX) and (match := _ADAPTER_TENSOR.search(name)) and "lora_" in match[1]
    }
    return sorted(paths)


def resize_adapter(state: Mapping[str, Tensor], vocab_size: int) -> State:
    """Truncate or zero-pad the tensors that have one row (or column) for each token."""
    resized = dict(state)
    for name, tensor in state.items():
        path = name.removeprefix(_ADAPTER_PREFIX)
        if not path.startswith(_VOCABULARY) or ".lora_A" in path or ".lora_embedding_B" in path:
            continue
        axis = 1 if ".lora_embedding_A" in path else 0
        missing = vocab_size - tensor.shape[axis]
        if missing > 0:
            shape = [missing if i == axis else n for i, n in enumerate(tensor.shape)]
            resized[name] = torch.cat([tensor, tensor.new_zeros(shape)], dim=axis)
        elif missing < 0:
            resized[name] = tensor.narrow(axis, 0, vocab_size).contiguous()
    return resized


def _translate_adapter(
    state: Mapping[str, Tensor], config: Mapping[str, Any], rename: Any
) -> tuple[State, dict[str, Any]]:
    renamed = {_ADAPTER_PREFIX + rename(name.removeprefix(_ADAPTER_PREFIX)): tensor for name, tensor in state.items()}
    modules = adapted_modules(state)
    translated = dict(config) | {
        # Suffixes and regexes match the other names; full paths are unambiguous.
        "target_modules": [rename(module) for module in modules],
        "modules_to_save": _saved_modules(state, config.get("modules_to_save") or (), rename),
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "auto_mapping": None,
        "task_type": None,
    }
    for key in ("rank_pattern", "alpha_pattern"):
        translated[key] = _expand_pattern(config.get(key) or {}, modules, rename)
    return renamed, translated


def _saved_modules(state: Mapping[str, Tensor], names: Iterable[str], rename: Any) -> list[str] | None:
    saved = set()
    for name in names:
        path = re.compile(rf"^({re.escape(_ADAPTER_PREFIX)})((?:.*\.)?{re.escape(name)})(?=\.)")
        saved |= {rename(match[2]) for key in state if (match := path.match(key))}
    return sorted(saved) or None


def _expand_pattern(pattern: Mapping[str, int], modules: Iterable[str], rename: Any) -> dict[str, int]:
    """Resolve peft's suffix or regex keys to full paths; the first key that matches a module applies, as in peft."""
    expanded = {}
    for module in modules:
        for key, value in pattern.items():
            if re.match(rf"(.*\.)?({key})$", module):
                expanded[rename(module)] = value
                break
    return expanded
