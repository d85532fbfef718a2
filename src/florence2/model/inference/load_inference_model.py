"""Loading of a model for the engine, without transformers, peft and the hub's client, whose imports take seconds.

Checkpoints of both layouts and adapters are read by the same functions as in `load.py`, and give the same predictions
to the last bit. Everything unusual (adapters of rare kinds, other activations, tokenizers without `tokenizer.json`) is
left to `load`.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from florence2.model.adapter.adapter_files import base_errors, base_name, base_revision, read_adapter
from florence2.model.inference.architecture import Architecture
from florence2.model.inference.fast_tokenizer import FastTokenizer
from florence2.model.inference.inference_model import InferenceModel
from florence2.model.inference.merge_adapter import can_merge, merge_adapter
from florence2.model.processing import Preprocessor
from florence2.model.storage import checkpoint_files as checkpoint
from florence2.model.storage import checkpoint_state as states
from florence2.model.storage import legacy_layout as legacy
from florence2.model.storage.score_calibration import ScoreCalibration

# Microsoft's files leave some settings to CLIP's image processor.
_IMAGE_DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), True),
    "do_center_crop": False,
    "rescale_factor": 1 / 255,
    "resample": 3,
}


def load_inference_model(
    folder: Path,
    name: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    offline: bool = False,
    base: str | None = None,
) -> tuple[InferenceModel, Preprocessor] | None:
    """Load the model in a folder and its preprocessing; None where `load` has to do it. `name` is for errors.

    An adapter is merged in float32 into its base: `base`, or the one it names, which is searched as `offline` says.
    """
    if checkpoint.is_adapter(folder):
        return _load_adapter(folder, base, dtype, device, offline)
    raw, is_legacy = states.read_raw_config(folder, name)
    sizes = Architecture.read(legacy.config_to_native(raw) if is_legacy else raw)
    if sizes is None or (preprocessor := _read_preprocessor(folder, sizes)) is None:
        return None
    state, is_tied = states.read_state(folder, is_legacy, sizes)
    tokens = {"num_tokens": len(preprocessor.tokenizer), "image_token_id": preprocessor.image_token_id}
    vocab_size = states.fit_vocabulary(state, **tokens)
    try:
        with torch.device("meta"):
            model = InferenceModel(sizes, vocab_size, is_tied=is_tied)
    except (RuntimeError, ValueError, TypeError, ArithmeticError):  # absurd sizes: `load` words the error
        return None
    state = states.match_weights(state, model.state_dict(), is_tied=is_tied, dtype=dtype, folder=folder)
    model.load_state_dict(state, strict=False, assign=True)
    if is_tied:
        model.lm_head.weight = model.model.language_model.shared.weight
    settings = states.generation_settings(folder, raw, is_legacy=is_legacy, vocab_size=vocab_size, **tokens)
    model.set_generation_config(settings)
    model.score_calibration = ScoreCalibration.read(folder)
    return model.eval().to(device), preprocessor


def _load_adapter(
    folder: Path, base: str | None, dtype: torch.dtype, device: torch.device, offline: bool
) -> tuple[InferenceModel, Preprocessor] | None:
    """Load the base of an adapter and merge the adapter into it; None where peft has to do it."""
    adapter = read_adapter(folder)
    states.check_finite(adapter.state, folder)
    if not can_merge(adapter.config):
        return None
    name = base_name(folder, adapter, base)
    with base_errors(folder, name):
        base_folder = checkpoint.find_folder(name, base_revision(adapter, base), offline)
        loaded = load_inference_model(base_folder, name, dtype=torch.float32, device=device, offline=offline)
    if loaded is None or not merge_adapter(loaded[0], adapter):
        return None
    model, preprocessor = loaded
    model.score_calibration = None  # that of the base does not hold for other weights
    return model.to(dtype), preprocessor


def _read_preprocessor(folder: Path, sizes: Architecture) -> Preprocessor | None:
    """Read the preprocessing; None where transformers has to fill in or convert settings."""
    folder, settings = states.read_processor_settings(folder, sizes)
    values = _IMAGE_DEFAULTS | (settings.get("image_processor") or settings)
    size = values["size"]
    is_complete = all(values.get(key) is not None for key in states.IMAGE_KEYS)
    if not is_complete or not isinstance(size, dict) or size.keys() != {"height", "width"}:
        return None
    if not (folder / "tokenizer.json").is_file():
        return None
    try:
        tokenizer: Any = FastTokenizer(checkpoint.read_backend_tokenizer(folder))
    except KeyError:
        return None
    stride = prod(sizes.vision_config.patch_stride)
    # The projector appends the mean of the vision tower's tokens.
    num_image_tokens = (size["height"] // stride) * (size["width"] // stride) + 1
    image_token_id = tokenizer("<image>", add_special_tokens=False)["input_ids"][0]
    processor = SimpleNamespace(
        image_processor=SimpleNamespace(**{key: values[key] for key in states.IMAGE_KEYS}),
        tokenizer=tokenizer,
        num_image_tokens=num_image_tokens,
        image_token_id=image_token_id,
    )
    return Preprocessor.from_processor(processor)
