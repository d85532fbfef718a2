"""Loading of a model and its processor from a folder or a hub id.

Transformers' layout, Microsoft's layout, exported fine-tunes and adapters for any of them become the same two objects
of transformers. `storage/checkpoint_files.py` finds and reads the files, `storage/legacy_layout.py` renames tensors.
"""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import Florence2Config, Florence2ForConditionalGeneration, Florence2Processor, GenerationConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from florence2.devices import pick_device, training_dtype
from florence2.errors import CheckpointError
from florence2.model.adapter import adapter_files, quantized
from florence2.model.storage import checkpoint_files as checkpoint
from florence2.model.storage import checkpoint_state as states
from florence2.model.storage import legacy_layout as legacy
from florence2.model.storage.score_calibration import ScoreCalibration

if TYPE_CHECKING:
    from peft import PeftModel

Model: TypeAlias = "Florence2ForConditionalGeneration | PeftModel"
_POST_PROCESSOR = Path(__file__).with_name("post_processor.json")
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
        require_adapter(name, base)
        return _load_checkpoint(folder, name, dtype, device, quantize, dropout or {})
    from florence2.model.adapter import lora  # importing peft takes seconds, and only adapters need it

    adapter = adapter_files.read_adapter(folder)
    states.check_finite(adapter.state, folder)
    # The merge is done in float32: rounding the weights before it would lose precision.
    options = {"dtype": torch.float32 if merge else dtype, "device": device, "offline": offline, "quantize": quantize}
    options |= {"dropout": dropout, "revision": adapter_files.base_revision(adapter, base)}
    model, processor = _load_base(folder, adapter, base, options)
    model.score_calibration = None  # that of the base does not hold for other weights
    wrapped = lora.load_adapter(model, adapter)
    if not merge:
        return wrapped, processor
    model = lora.merge(wrapped).to(dtype)
    model.config.dtype = dtype
    return model.eval(), processor


def count_checkpoint_parameters(name: str, revision: str | None = None, offline: bool = False) -> int:
    """Count the parameters of a checkpoint, or of the base of an adapter, by its config; no weights are read."""
    folder = checkpoint.find_folder(name, revision, offline)
    if checkpoint.is_adapter(folder):
        adapter = adapter_files.read_adapter(folder)
        with adapter_files.base_errors(folder, base := adapter_files.base_name(folder, adapter, None)):
            return count_checkpoint_parameters(base, adapter.revision, offline)
    raw, is_legacy = states.read_raw_config(folder, name)
    return int(
        _build(_read_config(folder, legacy.config_to_native(raw) if is_legacy else raw), folder).num_parameters()
    )


def require_adapter(name: str, base: str | Path | None) -> None:
    """Refuse a base for what is not an adapter."""
    if base is not None:
        raise CheckpointError(f"`{name}` is not an adapter and takes no base", "remove `--base_model`, or `base`")


def _load_base(
    folder: Path, adapter: adapter_files.Adapter, base: str | Path | None, options: Mapping[str, Any]
) -> tuple[Florence2ForConditionalGeneration, Florence2Processor]:
    """Load the base of an adapter."""
    name = adapter_files.base_name(folder, adapter, base)
    with adapter_files.base_errors(folder, name):
        return load(name, **options)


def _load_checkpoint(
    folder: Path, name: str, dtype: torch.dtype, device: torch.device, quantize: bool, dropout: Mapping[str, float]
) -> tuple[Florence2ForConditionalGeneration, Florence2Processor]:
    """Load a checkpoint of either layout; `name` becomes `config.name_or_path`."""
    raw, is_legacy = states.read_raw_config(folder, name)
    config = _read_config(folder, legacy.config_to_native(raw) if is_legacy else raw)
    processor = _read_processor(folder, config)
    state, config.tie_word_embeddings = states.read_state(folder, is_legacy, config)
    tokens = {"num_tokens": len(processor.tokenizer), "image_token_id": processor.image_token_id}
    config.text_config.vocab_size = states.fit_vocabulary(state, **tokens)
    config.image_token_id = processor.image_token_id
    config.name_or_path, config.dtype = name, dtype
    for rate, value in dropout.items():
        setattr(config.vision_config if rate in VISION_DROPOUT_RATES else config.text_config, rate, value)
    model = _assemble(config, state, folder)
    quantized.quantize_weights(model, device, dtype) if quantize else model.to(device)
    vocab_size = config.text_config.vocab_size
    settings = states.generation_settings(folder, raw, is_legacy=is_legacy, vocab_size=vocab_size, **tokens)
    try:
        model.generation_config = GenerationConfig(**settings)
    except (ValueError, TypeError) as error:
        raise _unusable(folder / (checkpoint.CONFIG if is_legacy else "generation_config.json"), error) from None
    model.score_calibration = ScoreCalibration.read(folder)
    return model, processor


def _read_config(folder: Path, raw: Mapping[str, Any]) -> Florence2Config:
    parts = {
        name: {key: value for key, value in (raw.get(name) or {}).items() if key != "dtype"}
        for name in ("vision_config", "text_config")
    }
    try:
        return Florence2Config(**parts)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise _unusable(folder / checkpoint.CONFIG, error) from None


def _unusable(path: Path, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split()).rstrip(".")
    return CheckpointError(f"`{path}` cannot be used: {reason}", "copy or download it again")


def _assemble(config: Florence2Config, state: legacy.State, folder: Path) -> Florence2ForConditionalGeneration:
    """Build the model and load the weights of the checkpoint; all must match."""
    model = _build(config, folder)
    is_tied, dtype = config.tie_word_embeddings, config.dtype
    state = states.match_weights(state, model.state_dict(), is_tied=is_tied, dtype=dtype, folder=folder)
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    return model.eval()


def _build(config: Florence2Config, folder: Path) -> Florence2ForConditionalGeneration:
    """Build the model without weights."""
    try:
        with torch.device("meta"):
            return Florence2ForConditionalGeneration(config)
    except (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError) as error:
        raise _unusable(folder / checkpoint.CONFIG, error) from None


def _read_processor(folder: Path, config: Florence2Config) -> Florence2Processor:
    """Read the processor, with Pillow's image processor."""
    folder, settings = states.read_processor_settings(folder, config)
    stride = prod(config.vision_config.patch_stride)
    image_settings = settings.get("image_processor") or settings
    known = {key: image_settings[key] for key in states.IMAGE_KEYS if key in image_settings}
    try:
        images = CLIPImageProcessorPil(**{"do_center_crop": False} | known)
    except (ValueError, TypeError, KeyError) as error:
        raise _unusable(folder / "preprocessor_config.json", error) from None
    # The projector appends the mean of the vision tower's tokens.
    images.image_seq_length = (images.size["height"] // stride) * (images.size["width"] // stride) + 1
    post_processor = settings.get("post_processor_config") or checkpoint.read_json(_POST_PROCESSOR)
    return Florence2Processor(images, checkpoint.read_tokenizer(folder), post_processor_config=post_processor)
