"""The tensors of a checkpoint, checked and converted for a model, and the settings beside them. Knows no transformers.

`load.py` builds transformers' objects from them, `inference/` the modules of prediction.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from florence2.errors import CheckpointError
from florence2.model.storage import check_settings
from florence2.model.storage import checkpoint_files as checkpoint
from florence2.model.storage import legacy_layout as legacy
from florence2.model.storage.finite import is_finite

_PROCESSOR = ("preprocessor_config.json", "processor_config.json")
IMAGE_KEYS = (
    *("size", "resample", "rescale_factor", "image_mean", "image_std"),
    *("do_resize", "do_rescale", "do_normalize", "do_center_crop"),
)
_COPY_HINT = "copy or download the complete folder again"


def read_raw_config(folder: Path, name: str) -> tuple[dict[str, Any], bool]:
    """Read `config.json`, and return whether it has Microsoft's layout; `name` is the model's in an error."""
    raw = checkpoint.read_json(folder / checkpoint.CONFIG)
    if raw.get("model_type") != "florence2":
        raise CheckpointError(f"`{name}` is a `{raw.get('model_type')}` model", "pass a Florence-2 model")
    check_settings.check_components(raw, folder / checkpoint.CONFIG)
    return raw, (raw.get("vision_config") or {}).get("model_type") != "florence_vision"


def read_state(folder: Path, is_legacy: bool, config: Any) -> tuple[legacy.State, bool]:
    """Read the tensors in transformers' names, tied ones once, and whether the output layer is tied.

    `config` is a `Florence2Config` or an `Architecture`; it may not name more layers than there are tensors.
    """
    state = checkpoint.read_weights(folder)
    check_settings.check_num_layers(config, len(state), folder / checkpoint.CONFIG)
    return _separate_tied(legacy.to_native(state) if is_legacy else state, folder)


def fit_vocabulary(state: legacy.State, num_tokens: int, image_token_id: int) -> int:
    """Return the number of embedding rows; `<image>`, which Microsoft's layout lacks, gets a row of zeros."""
    num_rows = state[legacy.SHARED].shape[0]
    if num_rows == num_tokens - 1 == image_token_id:
        for name in {legacy.SHARED, legacy.HEAD} & state.keys():
            state[name] = functional.pad(state[name], (0, 0, 0, 1))
        return num_tokens
    if num_rows < num_tokens:
        raise CheckpointError(
            f"the tokenizer has {num_tokens} tokens and the model {num_rows} rows for them",
            "copy both from the same checkpoint",
        )
    return int(num_rows)


def match_weights(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, is_tied: bool, dtype: torch.dtype, folder: Path
) -> legacy.State:
    """Return copies of all tensors in a dtype; their names and shapes must be those that a model expects.

    They are always copies: training may overwrite the memory-mapped file that it loaded.
    """
    tied = {*legacy.TIED, *([legacy.HEAD] if is_tied else [])}
    if missing := expected.keys() - state.keys() - tied:
        raise wrong_weights(folder, "missing", missing)
    if unexpected := state.keys() - expected.keys():
        raise wrong_weights(folder, "unexpected", unexpected)
    if misshapen := [name for name, tensor in state.items() if tensor.shape != expected[name].shape]:
        raise wrong_weights(folder, "wrongly shaped", misshapen)
    converted = {name: tensor.to(dtype, copy=True).contiguous() for name, tensor in state.items()}
    check_finite(converted, folder)
    return converted


def check_finite(state: Mapping[str, Tensor], folder: Path) -> None:
    """Raise CheckpointError for weights that are NaN or infinite."""
    if not_finite := [name for name, tensor in state.items() if not is_finite(tensor)]:
        raise wrong_weights(folder, "not finite", not_finite)


def wrong_weights(folder: Path, fault: str, names: Iterable[str]) -> CheckpointError:
    """Word the error about some tensors of a checkpoint."""
    ordered = sorted(names)
    rest = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    first = ", ".join(f"`{name}`" for name in ordered[:3])
    return CheckpointError(f"weights {fault} in `{folder}`: {first}{rest}", _COPY_HINT)


def generation_settings(
    folder: Path, raw: Mapping[str, Any], *, is_legacy: bool, num_tokens: int, image_token_id: int, vocab_size: int
) -> dict[str, Any]:
    """Return the generation config as the checkpoint's own code reads it.

    Microsoft's code reads `text_config` and never its `generation_config.json`; transformers does the reverse. Rows
    without a text token, such as `<image>`, are suppressed.
    """
    path = folder / "generation_config.json"
    saved = checkpoint.read_json(path) if path.is_file() else {}
    saved = {key: value for key, value in saved.items() if not key.startswith(("_", "transformers_version"))}
    text = {key: value for key, value in (raw.get("text_config") or {}).items() if key in legacy.GENERATION_KEYS}
    settings = saved | text if is_legacy else text | saved
    suppressed = {image_token_id, *range(num_tokens, vocab_size)}
    check_settings.check_token_ids(settings, vocab_size, path if saved else folder / checkpoint.CONFIG)
    settings["suppress_tokens"] = sorted(suppressed | set(settings.get("suppress_tokens") or ()))
    return settings


def read_processor_settings(folder: Path, config: Any) -> tuple[Path, dict[str, Any]]:
    """Read the processor's settings, and the folder that holds them and the tokenizer; `config` as in `read_state`.

    A trainer's `checkpoint-N` without a processor has that of its parent folder.
    """
    if not any((folder / name).is_file() for name in _PROCESSOR) and re.fullmatch(r"checkpoint-\d+", folder.name):
        folder = folder.parent
    settings: dict[str, Any] = {}
    for name in _PROCESSOR:
        if (folder / name).is_file():
            settings |= checkpoint.read_json(folder / name)
    images = settings.get("image_processor") or settings
    if not isinstance(images, dict) or "size" not in images:
        raise CheckpointError(f"`{folder}` has no `{_PROCESSOR[0]}` with an image size", "copy it from the base model")
    path = next(folder / name for name in _PROCESSOR if (folder / name).is_file())
    check_settings.check_image_settings(images, config.vision_config, path)
    check_settings.check_post_processor(settings.get("post_processor_config"), path)
    return folder, settings


def _separate_tied(state: legacy.State, folder: Path) -> tuple[legacy.State, bool]:
    """Store each tied matrix once, and return whether the output layer is tied to the embedding.

    Fine-tunes exported by Microsoft's code have an output layer that differs from the embedding: it remains untied.
    """
    state = dict(state)
    copies = {name: state.pop(name) for name in (legacy.SHARED, *legacy.TIED, legacy.HEAD) if name in state}
    if not copies:
        raise wrong_weights(folder, "missing", [legacy.SHARED])
    shared = next(iter(copies.values()))
    untied = [name for name, copy in copies.items() if not _equal(copy, shared)]
    state[legacy.SHARED] = shared
    if untied == [legacy.HEAD]:
        state[legacy.HEAD] = copies[legacy.HEAD]
    elif untied:
        raise CheckpointError(
            f"the weights in `{folder}` tie `{untied[0]}` to the embedding, but they differ", _COPY_HINT
        )
    return state, not untied


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() or (a.shape == b.shape and torch.equal(a, b.to(a.dtype)))
