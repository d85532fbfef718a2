"""Loading of a model and its processor from a folder or a hub id.

Transformers' layout, Microsoft's layout, exported fine-tunes and adapters for any of them become the same two objects
of transformers. `storage/checkpoint_files.py` finds and reads the files, `storage/legacy_layout.py` renames tensors.
"""

import re
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from torch.nn import functional
from transformers import Florence2Config, Florence2ForConditionalGeneration, Florence2Processor, GenerationConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from florence2.devices import pick_device, training_dtype
from florence2.errors import CheckpointError, UserError
from florence2.model.adapter import quantized
from florence2.model.storage import checkpoint_files as checkpoint
from florence2.model.storage import legacy_layout as legacy
from florence2.model.storage.finite import is_finite

if TYPE_CHECKING:
    from peft import PeftModel

    from florence2.model.adapter.lora import Adapter

Model: TypeAlias = "Florence2ForConditionalGeneration | PeftModel"
_PROCESSOR = ("preprocessor_config.json", "processor_config.json")
_POST_PROCESSOR = Path(__file__).with_name("post_processor.json")
_IMAGE_KEYS = (
    *("size", "resample", "rescale_factor", "image_mean", "image_std"),
    *("do_resize", "do_rescale", "do_normalize", "do_center_crop"),
)
_BASE_HINT = f"pass `base`, or fix `base_model_name_or_path` in its `{checkpoint.ADAPTER_CONFIG}`"
_COPY_HINT = "copy or download the complete folder again"
# The dropout rates of each component's config.
VISION_DROPOUT_RATES = ("drop_path_rate",)
TEXT_DROPOUT_RATES = ("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop")


def load(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    revision: str | None = None,
    offline: bool = False,
    merge: bool = True,
    quantize: bool = False,
    dropout: Mapping[str, float] | None = None,
    base: str | Path | None = None,
) -> tuple[Model, Florence2Processor]:
    """Load a model and its processor from a folder, a hub id, or `demo`, the small model in this package.

    An adapter is merged into its base, which is `base` or the one it names; with `merge=False` the model is a
    `PeftModel` around the base. `dtype` is a torch dtype or its name; the default (or "auto") is float32 on a CPU,
    bfloat16 on a GPU that has it, else float16. The default `device` is the best available. `quantize` stores the base
    in 4 bits, to train an adapter on it. `dropout` replaces rates of the checkpoint's config, such as `drop_path_rate`
    or `attention_dropout`, for training. Raises UserError (CheckpointError for faulty files).
    """
    device = pick_device(device)
    dtype = training_dtype(dtype, device)
    name = str(name_or_path)
    folder = checkpoint.find_folder(name, revision, offline)
    if not checkpoint.is_adapter(folder):
        return _load_checkpoint(folder, name, dtype, device, quantize, dropout or {})
    from florence2.model.adapter import lora  # importing peft takes seconds, and only adapters need it

    adapter = lora.read_adapter(folder)
    _check_finite(adapter.state, folder)
    # The merge is done in float32: rounding the weights before it would lose precision.
    options = {"dtype": torch.float32 if merge else dtype, "device": device, "offline": offline, "quantize": quantize}
    options["dropout"] = dropout
    model, processor = _load_base(folder, adapter, base, options | {"revision": adapter.revision})
    wrapped = lora.load_adapter(model, adapter)
    if not merge:
        return wrapped, processor
    model = lora.merge(wrapped).to(dtype)
    model.config.dtype = dtype
    return model.eval(), processor


def _load_base(
    folder: Path, adapter: "Adapter", base: str | Path | None, options: Mapping[str, Any]
) -> tuple[Florence2ForConditionalGeneration, Florence2Processor]:
    """Load the base of an adapter by its name, which may also be relative to the adapter's folder."""
    name = str(base or adapter.base or "")
    if not name:
        raise CheckpointError(f"the adapter in `{folder}` does not name its base", _BASE_HINT)
    relative = folder / name
    if not Path(name).exists() and relative.is_dir():
        name = str(relative)
    if Path(name).is_dir() and Path(name).resolve() == folder.resolve():
        raise CheckpointError(f"the adapter in `{folder}` names itself as its base", _BASE_HINT)
    try:
        return load(name, **options)
    except UserError as error:
        raise CheckpointError(f"the adapter in `{folder}` needs its base `{name}`: {error.what}", _BASE_HINT) from None


def _load_checkpoint(
    folder: Path, name: str, dtype: torch.dtype, device: torch.device, quantize: bool, dropout: Mapping[str, float]
) -> tuple[Florence2ForConditionalGeneration, Florence2Processor]:
    """Load a checkpoint of either layout; `name` becomes `config.name_or_path`."""
    raw = checkpoint.read_json(folder / checkpoint.CONFIG)
    if raw.get("model_type") != "florence2":
        raise CheckpointError(f"`{name}` is a `{raw.get('model_type')}` model", "pass a Florence-2 model")
    is_legacy = (raw.get("vision_config") or {}).get("model_type") != "florence_vision"
    config = _read_config(folder, legacy.config_to_native(raw) if is_legacy else raw)
    processor = _read_processor(folder, prod(config.vision_config.patch_stride))
    state = checkpoint.read_weights(folder)
    state, config.tie_word_embeddings = _separate_tied(legacy.to_native(state) if is_legacy else state, folder)
    config.text_config.vocab_size = _fit_vocabulary(state, processor)
    config.image_token_id = processor.image_token_id
    config.name_or_path, config.dtype = name, dtype
    for rate, value in dropout.items():
        setattr(config.vision_config if rate in VISION_DROPOUT_RATES else config.text_config, rate, value)
    model = _assemble(config, state, folder)
    quantized.quantize_weights(model, device, dtype) if quantize else model.to(device)
    model.generation_config = _generation_config(folder, raw, config, processor, is_legacy)
    return model, processor


def _read_config(folder: Path, raw: Mapping[str, Any]) -> Florence2Config:
    parts = {
        name: {key: value for key, value in (raw.get(name) or {}).items() if key != "dtype"}
        for name in ("vision_config", "text_config")
    }
    try:
        return Florence2Config(**parts)
    except (StrictDataclassError, ValueError, TypeError) as error:
        path, reason = folder / checkpoint.CONFIG, " ".join(str(error).split()).rstrip(".")
        raise CheckpointError(f"`{path}` cannot be used: {reason}", "copy or download it again") from None


def _separate_tied(state: legacy.State, folder: Path) -> tuple[legacy.State, bool]:
    """Store each tied matrix once, and return whether the output layer is tied to the embedding.

    Fine-tunes exported by Microsoft's code have an output layer that differs from the embedding: it remains untied.
    """
    state = dict(state)
    copies = {name: state.pop(name) for name in (legacy.SHARED, *legacy.TIED, legacy.HEAD) if name in state}
    if not copies:
        raise _wrong_weights(folder, "missing", [legacy.SHARED])
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


def _fit_vocabulary(state: legacy.State, processor: Florence2Processor) -> int:
    """Return the number of embedding rows; `<image>`, which Microsoft's layout lacks, gets a row of zeros."""
    num_rows, num_tokens = state[legacy.SHARED].shape[0], len(processor.tokenizer)
    if num_rows == num_tokens - 1 == processor.image_token_id:
        for name in {legacy.SHARED, legacy.HEAD} & state.keys():
            state[name] = functional.pad(state[name], (0, 0, 0, 1))
        return num_tokens
    if num_rows < num_tokens:
        raise CheckpointError(
            f"the tokenizer has {num_tokens} tokens and the model {num_rows} rows for them",
            "copy both from the same checkpoint",
        )
    return int(num_rows)


def _assemble(config: Florence2Config, state: legacy.State, folder: Path) -> Florence2ForConditionalGeneration:
    """Build the model without weights and load those of the checkpoint; all must match."""
    with torch.device("meta"):
        model = Florence2ForConditionalGeneration(config)
    expected = model.state_dict()
    tied = {*legacy.TIED, *([legacy.HEAD] if config.tie_word_embeddings else [])}
    if missing := expected.keys() - state.keys() - tied:
        raise _wrong_weights(folder, "missing", missing)
    if unexpected := state.keys() - expected.keys():
        raise _wrong_weights(folder, "unexpected", unexpected)
    if misshapen := [name for name, tensor in state.items() if tensor.shape != expected[name].shape]:
        raise _wrong_weights(folder, "wrongly shaped", misshapen)
    # Always a copy: training may overwrite the memory-mapped file that it loaded.
    state = {name: tensor.to(config.dtype, copy=True).contiguous() for name, tensor in state.items()}
    _check_finite(state, folder)
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    return model.eval()


def _check_finite(state: Mapping[str, Tensor], folder: Path) -> None:
    """Raise CheckpointError for weights that are NaN or infinite."""
    if not_finite := [name for name, tensor in state.items() if not is_finite(tensor)]:
        raise _wrong_weights(folder, "not finite", not_finite)


def _wrong_weights(folder: Path, fault: str, names: Iterable[str]) -> CheckpointError:
    ordered = sorted(names)
    rest = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    first = ", ".join(f"`{name}`" for name in ordered[:3])
    return CheckpointError(f"weights {fault} in `{folder}`: {first}{rest}", _COPY_HINT)


def _generation_config(
    folder: Path, raw: Mapping[str, Any], config: Florence2Config, processor: Florence2Processor, is_legacy: bool
) -> GenerationConfig:
    """Build the generation config as the checkpoint's own code does.

    Microsoft's code reads `text_config` and never its `generation_config.json`; transformers does the reverse. Rows
    without a text token, such as `<image>`, are suppressed.
    """
    path = folder / "generation_config.json"
    saved = checkpoint.read_json(path) if path.is_file() else {}
    saved = {key: value for key, value in saved.items() if not key.startswith(("_", "transformers_version"))}
    text = {key: value for key, value in (raw.get("text_config") or {}).items() if key in legacy.GENERATION_KEYS}
    settings = saved | text if is_legacy else text | saved
    suppressed = {processor.image_token_id, *range(len(processor.tokenizer), config.text_config.vocab_size)}
    settings["suppress_tokens"] = sorted(suppressed | set(settings.get("suppress_tokens") or ()))
    return GenerationConfig(**settings)


def _read_processor(folder: Path, stride: int) -> Florence2Processor:
    """Read the processor, with Pillow's image processor; `stride` is the size of a vision token in pixels.

    A trainer's `checkpoint-N` without a processor has that of its parent folder.
    """
    if not any((folder / name).is_file() for name in _PROCESSOR) and re.fullmatch(r"checkpoint-\d+", folder.name):
        folder = folder.parent
    settings: dict[str, Any] = {}
    for name in _PROCESSOR:
        if (folder / name).is_file():
            settings |= checkpoint.read_json(folder / name)
    image_settings = settings.get("image_processor") or settings
    if "size" not in image_settings:
        raise CheckpointError(f"`{folder}` has no `{_PROCESSOR[0]}` with an image size", "copy it from the base model")
    known = {key: image_settings[key] for key in _IMAGE_KEYS if key in image_settings}
    images = CLIPImageProcessorPil(**{"do_center_crop": False} | known)
    # The projector appends the mean of the vision tower's tokens.
    images.image_seq_length = (images.size["height"] // stride) * (images.size["width"] // stride) + 1
    post_processor = settings.get("post_processor_config") or checkpoint.read_json(_POST_PROCESSOR)
    return Florence2Processor(images, checkpoint.read_tokenizer(folder), post_processor_config=post_processor)
