"""The small files of a checkpoint in Microsoft's layout: config, generation config, preprocessor and tokenizer.

Their keys are those of `microsoft/Florence-2-*` on the hub. `auto_map` names Microsoft's repository, whose code other
programs load; no code is copied.
"""

import json
from pathlib import Path
from typing import Any

from florence2.errors import OptionError
from florence2.export.export_source import ExportSource
from florence2.files import atomic_write
from florence2.model.storage import legacy_layout as legacy
from florence2.model.storage.checkpoint_files import CONFIG, IMAGE_TOKEN
from florence2.model.tasks import SPECIAL_TOKENS

# Keys that Microsoft's configs have, that its code does not use, and that other programs read all the same.
_TEXT_CONSTANTS: dict[str, Any] = {
    "add_bias_logits": False,
    "add_final_layer_norm": False,
    "classif_dropout": 0.1,
    "gradient_checkpointing": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2},
    "normalize_before": False,
}
_IMAGE_KEYS = (
    *("do_normalize", "do_rescale", "do_resize", "do_center_crop", "rescale_factor", "image_seq_length"),
    *("image_mean", "image_std", "resample"),
)
_CODE = {
    CONFIG: {
        "AutoConfig": "configuration_florence2.Florence2Config",
        "AutoModelForCausalLM": "modeling_florence2.Florence2ForConditionalGeneration",
    },
    "preprocessor_config.json": {"AutoProcessor": "processing_florence2.Florence2Processor"},
}
_LARGE = 1024  # the width of the large models


def require_no_added_tokens(source: ExportSource) -> None:
    """Raise OptionError for tokens after `<image>`, which Microsoft's layout cannot hold."""
    size = source.vocab_size
    added = [token for token, number in source.processor.tokenizer.get_vocab().items() if number > size]
    if added:
        what = f"Microsoft's layout has no place for the token `{min(added)}`, which follows `{IMAGE_TOKEN}`"
        raise OptionError(what, "export with `--to transformers`")


def code_repository(source: ExportSource) -> str:
    """Return Microsoft's repository with the code for this model: its base, or the one of its size."""
    if source.base.startswith("microsoft/Florence-2-"):
        return source.base
    is_large = source.model.config.text_config.d_model == _LARGE
    return "microsoft/Florence-2-large-ft" if is_large else "microsoft/Florence-2-base-ft"


def write_configs(source: ExportSource, folder: Path, dtype: str) -> None:
    """Write `config.json`, `generation_config.json` and `preprocessor_config.json`."""
    config, generation = source.model.config, source.model.generation_config.to_diff_dict()
    values = legacy.config_to_legacy(config.to_dict(), generation)
    values["text_config"] |= _TEXT_CONSTANTS | {"num_hidden_layers": config.text_config.encoder_layers}
    values["vision_config"]["enable_checkpoint"] = False
    values |= {key: generation[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    values |= {"ignore_index": -100, "torch_dtype": dtype}
    if not config.tie_word_embeddings:
        values["tie_word_embeddings"] = values["text_config"]["tie_word_embeddings"] = False
    generation.pop("transformers_version", None)
    suppressed = [token for token in generation.pop("suppress_tokens", None) or () if token < source.vocab_size]
    _write_json(folder / CONFIG, values | {"auto_map": _auto_map(source, CONFIG)})
    _write_json(folder / "generation_config.json", generation | ({"suppress_tokens": suppressed} if suppressed else {}))
    _write_preprocessor(source, folder / "preprocessor_config.json")


def _write_preprocessor(source: ExportSource, path: Path) -> None:
    images = source.processor.image_processor
    size = {"height": images.size["height"], "width": images.size["width"]}
    values = {key: getattr(images, key) for key in _IMAGE_KEYS} | {"resample": int(images.resample)}
    values |= {"image_processor_type": "CLIPImageProcessor", "processor_class": "Florence2Processor"}
    values |= {"do_convert_rgb": None, "size": size, "crop_size": size, "auto_map": _auto_map(source, path.name)}
    _write_json(path, values)


def write_tokenizer(source: ExportSource, folder: Path) -> None:
    """Write the tokenizer without the tokens that Microsoft's processor adds."""
    tokenizer = source.processor.tokenizer
    values = json.loads(tokenizer.backend_tokenizer.to_str())
    extra = (*SPECIAL_TOKENS, IMAGE_TOKEN)
    values["added_tokens"] = [each for each in values["added_tokens"] if each["content"] not in extra]
    model = values["model"]
    known = model["vocab"].keys() | {each["content"] for each in values["added_tokens"]}
    ids = [tokenizer.convert_tokens_to_ids(token) for token in extra]
    if ids != list(range(len(known), len(known) + len(extra))):
        what = "the special tokens of this model have other ids than Microsoft's code gives them"
        raise OptionError(what, "export with `--to transformers`")
    # Releases of tokenizers before 0.20 read merges as text only.
    model["merges"] = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    _write_json(folder / "tokenizer.json", values, indent=None)
    _write_json(folder / "vocab.json", model["vocab"], indent=None)
    _write_json(folder / "tokenizer_config.json", {"model_max_length": tokenizer.model_max_length})


def _auto_map(source: ExportSource, file: str) -> dict[str, str]:
    return {name: f"{code_repository(source)}--{path}" for name, path in _CODE[file].items()}


def _write_json(path: Path, values: dict[str, Any], indent: int | None = 2) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(values, ensure_ascii=False, indent=indent) + "\n")
