"""Export in Microsoft's layout, which ComfyUI-Florence2, taggui, qapyq, ms-swift and vLLM's plugin read.

The names are those of `model/storage/legacy_layout.py`, whose table the loader uses in the other direction.
"""

from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict

from florence2.export.comparison import LogitsFn
from florence2.export.export_source import ExportSource
from florence2.export.layouts.microsoft_files import (
    code_repository,
    require_no_added_tokens,
    write_configs,
    write_tokenizer,
)
from florence2.export.layouts.torch_logits import require_equal_weights, torch_logits
from florence2.model.load import load
from florence2.model.storage import legacy_layout as legacy
from florence2.model.storage.checkpoint_files import CONFIG, read_json

_USAGE = """
## Use

The layout of `microsoft/Florence-2-*`. There is no code in this folder: `auto_map` in `config.json` and
`preprocessor_config.json` names that of `{repository}`, which programs load where they pass `trust_remote_code=True`.

| program | how |
|---|---|
| ComfyUI-Florence2 | copy this folder to `ComfyUI/models/LLM/`, and choose it in the node *Florence2ModelLoader* |
| taggui | copy this folder into the models directory of its settings, with `florence` in its name |
| qapyq | Model Settings, backend Florence-2, model path: this folder |
| ms-swift | `swift infer --model path/to/this/folder --model_type florence` |
| vLLM with bart-plugin | `LLM(model="path/to/this/folder", tokenizer=..., trust_remote_code=True)` |
| florence2 | `florence2 predict --model_path path/to/this/folder --input_path images` |
{notes}"""
_UNTIED = """
The output layer of this model differs from its token embedding. ComfyUI-Florence2 ties the two, and so computes
something else.
"""
_SHARDED = """
The weights are in several files. ComfyUI-Florence2 reads a single `model.safetensors` only.
"""


def write(source: ExportSource, folder: Path, dtype: str, max_shard_size: str) -> None:
    """Write the weights under Microsoft's names, and the small files."""
    require_no_added_tokens(source)
    write_configs(source, folder, dtype)
    write_tokenizer(source, folder)
    weights = {name: tensor.to(getattr(torch, dtype)) for name, tensor in source.model.state_dict().items()}
    renamed = legacy.to_legacy(weights, source.vocab_size)
    if not source.model.config.tie_word_embeddings:
        # Microsoft's code ties nothing then, and finds the embedding under each of its names.
        renamed |= {
            legacy.legacy_name(name): renamed[legacy.legacy_name(legacy.SHARED)].clone() for name in legacy.TIED
        }
    save_torch_state_dict({name: _own(each) for name, each in renamed.items()}, folder, max_shard_size=max_shard_size)


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor that is a part of a larger one, which safetensors would not write."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def read_logits(source: ExportSource, folder: Path) -> LogitsFn:
    """Load an export by the loader of this package, which converts Microsoft's layout."""
    model, _ = load(folder, device="cpu", dtype=read_json(folder / CONFIG)["torch_dtype"])
    require_equal_weights(model, source, num_rows=source.vocab_size)
    return torch_logits(model)


def usage(source: ExportSource, folder: Path) -> str:
    """Return the section of the README that says how to load the export."""
    notes = "" if source.model.config.tie_word_embeddings else _UNTIED
    if (folder / "model.safetensors.index.json").is_file():
        notes += _SHARDED
    return _USAGE.format(repository=code_repository(source), notes=notes)
