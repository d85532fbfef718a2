"""Checks of a checkpoint's settings files: types, sizes and ranges, before memory is taken for what they ask for.

Every function raises CheckpointError that names the file, the key and its value.
"""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

from florence2.errors import CheckpointError

_HINT = "copy or download it again"
_LARGEST = 1e300  # above it lies what no float holds
_TOKEN_IDS = ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
_OPTIONAL_TOKEN_IDS = ("forced_bos_token_id", "forced_eos_token_id")


def check_components(config: Mapping[str, Any], path: Path) -> None:
    """Require that the configs of both components, and Microsoft's of position embeddings, are objects."""
    for key in ("vision_config", "text_config"):
        if not isinstance(config.get(key) or {}, Mapping):
            raise _wrong(path, key, config[key], "an object")
    vision = config.get("vision_config") or {}
    for key in ("visual_temporal_embedding", "image_pos_embed"):
        if not isinstance(vision.get(key) or {}, Mapping):
            raise _wrong(path, key, vision[key], "an object")


def check_max_length(value: Any, path: Path) -> int:
    """Return the `model_max_length` of a tokenizer, which old versions write as 1e30; 1024 where it is absent."""
    if value is None:
        return 1024
    if not _is_number(value) or value < 1:
        raise _wrong(path, "model_max_length", value, "a number of tokens")
    return int(value)


def check_location_ids(ids: Sequence[int], path: Path) -> None:
    """Require that the location tokens have consecutive ids, as every Florence-2 has them."""
    for number, token_id in enumerate(ids):
        if token_id != ids[0] + number:
            expected = f"{ids[0] + number}, the one after that of `<loc_{number - 1}>`"
            raise CheckpointError(
                f"`{path}` gives `<loc_{number}>` the id {token_id}, not {expected}", "copy it from the base model"
            )


def check_num_layers(config: Any, num_tensors: int, path: Path) -> None:
    """Require no more layers than there are tensors: a model of 10^9 layers takes memory even without weights."""
    layers = {
        "encoder_layers": config.text_config.encoder_layers,
        "decoder_layers": config.text_config.decoder_layers,
        **{f"depths[{i}]": depth for i, depth in enumerate(config.vision_config.depths)},
    }
    for key, number in layers.items():
        if not _is_int(number) or not 0 < number <= num_tensors:
            raise _wrong(path, key, number, f"a number of layers up to {num_tensors}, the number of tensors")


def check_image_settings(settings: Mapping[str, Any], vision_config: Any, path: Path) -> None:
    """Require an image size that the position embeddings reach, and numbers for the normalization."""
    stride, max_positions = prod(vision_config.patch_stride), vision_config.max_position_embeddings
    size = settings["size"]
    if not isinstance(size, Mapping) or not size:
        raise _wrong(path, "size", size, "an object with `height` and `width`")
    for key, pixels in size.items():
        largest = stride * max_positions
        if not _is_int(pixels) or not stride <= pixels <= largest:
            raise _wrong(path, f"size.{key}", pixels, f"a number of pixels from {stride} to {largest}")
    for key in ("image_mean", "image_std"):
        values = settings.get(key)
        if values is None:
            continue
        if not isinstance(values, list) or len(values) != 3 or not all(map(_is_number, values)):
            raise _wrong(path, key, values, "three numbers")
        if key == "image_std" and not all(values):
            raise _wrong(path, key, values, "three numbers other than 0")
    rescale = settings.get("rescale_factor")
    if rescale is not None and not _is_number(rescale):
        raise _wrong(path, "rescale_factor", rescale, "a number")


def check_post_processor(settings: Any, path: Path) -> None:
    """Require that the settings of the post-processing are an object, or absent."""
    if settings is not None and not isinstance(settings, Mapping):
        raise _wrong(path, "post_processor_config", settings, "an object")


def check_token_ids(settings: Mapping[str, Any], vocab_size: int, path: Path) -> None:
    """Require that every token id of a generation config is one of the vocabulary."""
    for key in (*_TOKEN_IDS, *_OPTIONAL_TOKEN_IDS):
        value = settings.get(key)
        ids = value if isinstance(value, list) and key in _TOKEN_IDS else [value]
        if value is not None and not all(_is_int(each) and 0 <= each < vocab_size for each in ids):
            raise _wrong(path, key, value, f"a token id from 0 to {vocab_size - 1}")
    size = settings.get("no_repeat_ngram_size")
    if size is not None and (not _is_int(size) or size < 0):
        raise _wrong(path, "no_repeat_ngram_size", size, "a number from 0")


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def _wrong(path: Path, key: str, value: Any, expected: str) -> CheckpointError:
    return CheckpointError(f"`{path}` has `{key}: {str(value)[:60]}`, not {expected}", _HINT)
